"""Runs one case in a process of its own: its peak memory is its own, and running out of memory or time is a result.

On a CPU peak memory is a property of the process, so two cases in one process cannot be told apart. The limit on memory
is set for that process, so that a case which is too large ends in a message and not in the machine's killing something.
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
"""Of Linux's prctl: the signal that a process gets when the one that started it ends, of whatever."""

DONE, OUT_OF_MEMORY, TOO_SLOW, FAILED = "done", "out of memory", "too slow", "failed"


@dataclass(frozen=True)
class Outcome:
    """How a case ended.

    Attributes:
        status: "done", "out of memory", "too slow" or "failed".
        value: what the work returned, if it is done.
        peak: the largest resident memory of the process in bytes, libraries and weights included; None if not done.
        note: why it is not done, in a line.
    """

    status: str
    value: Any = None
    peak: int | None = None
    note: str = ""


def end_with_parent() -> None:
    """From now on this process is killed when the thread that started it ends, of whatever; on Linux."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def alone(work: Callable[[], Any], time_limit: float | None = None, memory_limit: int | None = None) -> Outcome:
    """Calls `work()` in a new process, which does not outlive the thread that called.

    Args:
        work: what can be pickled and imports no more than it needs, as a `functools.partial` of a function of a module.
        time_limit: seconds for all of it, from the start of the process.
        memory_limit: bytes that it may hold; None for nine tenths of what this machine has free.
    """
    limit = memory_limit or int(0.9 * free_memory())
    command = [sys.executable, "-m", "infvit.measure.subprocess_case"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    task = pickle.dumps((os.getpid(), limit, torch.get_num_threads(), work))
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment) as process:
        try:
            answer, _ = process.communicate(task, timeout=time_limit)
        except subprocess.TimeoutExpired:
            process.kill()
            return Outcome(TOO_SLOW, note=f"stopped after {time_limit:,.0f} s")
        except BaseException:
            process.kill()
            raise
    if process.returncode == -signal.SIGKILL:
        return Outcome(OUT_OF_MEMORY, note="killed by the system")
    if process.returncode or not answer:
        return Outcome(FAILED, note=f"the process ended with code {process.returncode}")
    return pickle.loads(answer)


def free_memory() -> int:
    """Bytes that a new process can have: what the system calls available, and what a container's limit leaves."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free = min(free, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    return free


def peak_memory() -> int:
    """The largest resident memory of this process so far, in bytes (getrusage's begins with that of its parent)."""
    return _status("VmHWM")


def resident_memory() -> int:
    """The resident memory of this process now, in bytes."""
    return _status("VmRSS")


def _status(name: str) -> int:
    return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024


def _outcome(limit: int, threads: int, work: Callable[[], Any]) -> Outcome:
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    torch.set_num_threads(threads)
    try:
        return Outcome(DONE, work(), peak_memory())
    except Exception as error:
        if is_out_of_memory(error):
            on_device = isinstance(error, torch.OutOfMemoryError)
            return Outcome(
                OUT_OF_MEMORY, note="more than the GPU has" if on_device else f"more than {limit / 1e9:.1f} GB"
            )
        if isinstance(error, UsageError):
            return Outcome(FAILED, note=str(error))
        raise


def _main() -> None:
    """The new process: prints go to the terminal's error stream, the answer alone to the pipe."""
    parent, limit, threads, work = pickle.load(sys.stdin.buffer)
    end_with_parent()
    if os.getppid() != parent:  # it ended before
        return
    answer = os.dup(1)
    os.dup2(2, 1)
    outcome = _outcome(limit, threads, work)
    with os.fdopen(answer, "wb") as pipe:
        pickle.dump(outcome, pipe)


if __name__ == "__main__":
    # The classes that are pickled must be those of the module by its name.
    from infvit.measure import subprocess_case as this

    this._main()
