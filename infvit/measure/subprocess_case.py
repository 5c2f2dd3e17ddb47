"""Runs one case of a measurement in a process of its own, where running out of memory or time is a result.

On a CPU peak memory belongs to the process, so each case runs in a process of its own. The memory limit holds
for that process alone: a case that is too large ends with a message instead of the system's out-of-memory killer.
"""

import contextlib
import ctypes
import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from infvit.errors import UsageError, is_out_of_memory

PR_SET_PDEATHSIG = 1
"""Option of Linux's prctl: the signal that a process gets when its parent ends for whatever reason."""

DONE, OUT_OF_MEMORY, TOO_SLOW, FAILED = "done", "out of memory", "too slow", "failed"


@dataclass(frozen=True)
class CaseOutcome:
    """How a case ended.

    Attributes:
        status: "done", "out of memory", "too slow" or "failed".
        value: what the function returned, if it is done.
        note: one line on why it is not done.
    """

    status: str
    value: Any = None
    note: str = ""


def end_with_parent() -> None:
    """Has this process killed when the thread that started it ends for whatever reason; on Linux only."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def run_isolated(
    work: Callable[[], Any], time_limit: float | None = None, memory_limit: int | None = None
) -> CaseOutcome:
    """Calls `work()` in a new process, which does not outlive the calling thread.

    Args:
        work: can be pickled and imports only what it needs, e.g. a `functools.partial` of a module's function.
        time_limit: seconds, from the start of the process.
        memory_limit: bytes that it may allocate; None for nine tenths of the free memory.
    """
    limit = memory_limit or int(0.9 * free_memory())
    command = [sys.executable, "-m", "infvit.measure.subprocess_case"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    task = pickle.dumps((os.getpid(), limit, torch.get_num_threads(), work))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            output, _ = process.communicate(task, timeout=time_limit)
        except subprocess.TimeoutExpired:
            return CaseOutcome(TOO_SLOW, note=f"stopped after {time_limit:,.0f} s")
        finally:
            process.kill()  # without effect on one that has ended
    if process.returncode == -signal.SIGKILL:
        return CaseOutcome(OUT_OF_MEMORY, note="killed by the system")
    if process.returncode or not output:
        return CaseOutcome(FAILED, note=f"the process ended with code {process.returncode}")
    return pickle.loads(output)


def free_memory() -> int:
    """Bytes that a new process can allocate: the system's available memory, within the container's limit."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def peak_memory() -> int:
    """Peak resident memory of this process in bytes; getrusage would start from the parent's."""
    return _process_status("VmHWM")


def resident_memory() -> int:
    """Resident memory of this process now, in bytes."""
    return _process_status("VmRSS")


def _process_status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024


def _run(limit: int, threads: int, work: Callable[[], Any]) -> CaseOutcome:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(threads)
    try:
        return CaseOutcome(DONE, work())
    except UsageError as error:
        return CaseOutcome(FAILED, note=str(error))
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        most = "the GPU has" if isinstance(error, torch.OutOfMemoryError) else f"{limit / 1e9:.1f} GB"
        return CaseOutcome(OUT_OF_MEMORY, note=f"more than {most}")


def _main() -> None:
    """The new process: what `work` prints goes to stderr, the outcome alone to the pipe."""
    parent, limit, threads, work = pickle.load(sys.stdin.buffer)
    end_with_parent()
    if os.getppid() != parent:  # it ended before the call above
        return
    pipe = os.dup(1)
    os.dup2(2, 1)
    outcome = _run(limit, threads, work)
    with os.fdopen(pipe, "wb") as file:
        pickle.dump(outcome, file)


if __name__ == "__main__":
    # Unpickled classes must come from the module's own name, not from __main__.
    from infvit.measure import subprocess_case

    subprocess_case._main()
