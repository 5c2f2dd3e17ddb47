"""Ends a distributed run when a rank hangs or dies, and names that rank: all others wait for it in a collective."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed as dist
from torch.distributed import PrefixStore, Store

from infvit.errors import UsageError, expect
from infvit.run.ranks import open_store, store_outlives_workers
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError

ADVICE = "all ranks stop; resume with the same command and resume=auto"
GRACE = 15.0  # seconds in which all ranks that wait get their error, and in which a process ends by itself
GLOO_ERRORS = ("gloo", "pair closure", "monitoredBarrier")  # they have no class of their own


class HangWatchdog(Callback):
    """Sets the timeout of collectives and reports the rank at fault when one fails; must be the first callback.

    A collective waits `step_timeout` seconds for the slowest rank; at start-up, in first batches, between epochs and
    for checkpoints `startup_timeout`. Each rank keeps its position in the store, and notes there if a collective fails:
    at fault is the rank that does not, of several the one that is last. NCCL aborts instead, and leaves a dump.
    """

    def __init__(self, startup_timeout: float = 1800.0, step_timeout: float = 120.0) -> None:
        for name, seconds in (("startup_timeout", startup_timeout), ("step_timeout", step_timeout)):
            expect(seconds > 0, f"callbacks.hang_watchdog.{name}={seconds}", "seconds above 0")
        self.startup_timeout, self.step_timeout = timedelta(seconds=startup_timeout), timedelta(seconds=step_timeout)
        self.timeout = self.startup_timeout
        self.loops, self.first_batch = 0, True
        self.store: Store | None = None
        self.children: list[subprocess.Popen] = []
        self.table: dict[str, dict[int, str]] = {"process": {}, "position": {}, "waits": {}, "error": {}}
        self.place = "", 0

    def before_launch(self, trainer: Trainer) -> None:
        """Notes this process in the store before there is a process group: a rank that does not come is named too."""
        if trainer.world_size == 1:
            return
        if torch.cuda.is_available():
            os.environ |= {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
            os.environ["TORCH_FR_DUMP_TEMP_FILE"] = f"{trainer.default_root_dir}/nccl_flight_recorder_rank"
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        self.place = environment.main_address, environment.main_port
        store = open_store(*self.place, trainer.global_rank, self.startup_timeout)
        self.store = PrefixStore(f"watchdog/{trainer.default_root_dir}", store)
        self.store.set(f"process/{trainer.global_rank}", f"{os.getpid()} {os.uname().nodename}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._between_steps()
        if self.store is not None:
            self.table["process"][0] = self.store.get("process/0").decode()  # rank zero may take the store with it
            if trainer.strategy.root_device.type == "cpu":  # gloo notices at once that a process has died, NCCL may not
                self._take_children(trainer)

    def _between_steps(self, *_: Any, **__: Any) -> None:
        self.loops, self.first_batch = self.loops + 1, True
        self._set_timeout(self.startup_timeout)

    on_train_start = on_train_epoch_start = on_validation_start = on_test_start = _between_steps
    on_train_epoch_end = on_validation_epoch_end = on_test_epoch_end = _between_steps

    def _start_batch(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int, *_: Any, **__: Any) -> None:
        if self.store is not None:  # equal positions are equal work, and a larger one is later
            position = f"{self.loops:09} {batch_idx + 1:09} {trainer.state.stage and trainer.state.stage.value}"
            self.store.set(f"position/{trainer.global_rank}", position)

    on_train_batch_start = on_validation_batch_start = on_test_batch_start = _start_batch

    def on_save_checkpoint(self, *_: Any, **__: Any) -> None:
        self._set_timeout(self.startup_timeout)

    def on_before_backward(self, *_: Any, **__: Any) -> None:
        if not self.first_batch:  # a checkpoint may have been written since the batch before
            self._set_timeout(self.step_timeout)

    def _end_batch(self, *_: Any, **__: Any) -> None:
        self.first_batch = False
        self._set_timeout(self.step_timeout)

    on_train_batch_end = on_validation_batch_end = on_test_batch_end = _end_batch

    def _set_timeout(self, timeout: timedelta) -> None:
        # In versions of torch without set_timeout the start-up timeout holds throughout.
        if self.store is not None and timeout != self.timeout and hasattr(dist, "set_timeout"):
            dist.set_timeout(timeout)
            self.timeout = timeout

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends this rank if a collective has failed; an error of its own passes.

        Raises:
            UsageError: in rank zero, with the rank at fault.
            SystemExit: in the other ranks; the lowest one reports if rank zero is at fault.
        """
        store, rank, ranks = self.store, trainer.global_rank, range(trainer.world_size)
        if store is None or isinstance(exception, SystemExit):
            return
        self._take_children(trainer)
        waits = isinstance(exception, dist.DistError) or any(word in str(exception) for word in GLOO_ERRORS)
        entry, error = "waits" if waits else "error", f"{type(exception).__name__}: {exception}".splitlines()[0]
        with contextlib.suppress(RuntimeError):
            store.set(f"{entry}/{rank}", error)
        if not waits:
            self._end_children(0)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to all when one rank has died
        try:
            self._read_table(store, ranks)
        except (OSError, RuntimeError):  # the store was in rank zero, which is at fault, or in torchrun
            self.table["waits"] = dict.fromkeys(ranks if store_outlives_workers() else ranks[1:], "")
        errors, waiting = self.table["error"], self.table["waits"]
        silent = {r: self.table["position"].get(r, "") for r in ranks if r not in errors | waiting}
        hanging = [r for r in silent if not errors and silent[r] == min(silent.values())]
        if not errors and not hanging:
            return
        line = f"{'; '.join(map(self._describe, [*errors, *hanging]))}: {ADVICE}"
        if torch.cuda.is_available():
            line += f" (NCCL's flight recorder, on a timeout: {os.environ['TORCH_FR_DUMP_TEMP_FILE']}*)"
        if rank == min(waiting) > 0:
            _report_for_rank_zero(trainer, line, came=0 in self.table["process"])
        for pid, host in (self.table["process"][r].split() for r in hanging if r in self.table["process"]):
            if host == os.uname().nodename:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        self._end_children(GRACE)
        raise (SystemExit(2) if rank else UsageError(line)) from exception

    def _read_table(self, store: Store, ranks: range) -> None:
        """Reads the table once all ranks, without an error all but one, have noted something, or some seconds later.

        OSError or RuntimeError if the store does not answer.
        """
        rank_zero = self.table["process"].get(0)
        if rank_zero and not store_outlives_workers() and _is_stopped(*rank_zero.split()):
            raise RuntimeError("torch would wait for this store without a timeout")
        until, missing = time.monotonic() + GRACE, len(ranks)
        while missing > (not self.table["error"]) and time.monotonic() < until:
            self.table = {
                name: {r: store.get(f"{name}/{r}").decode() for r in ranks if store.check([f"{name}/{r}"])}
                for name in self.table
            }
            missing = len(ranks) - len(self.table["waits"] | self.table["error"])
            time.sleep(0.1)

    def _describe(self, rank: int) -> str:
        if rank not in self.table["process"]:
            address, port = self.place
            return f"rank {rank} did not come to {address}:{port} within {self.startup_timeout.total_seconds():.0f} s"
        pid, host = self.table["process"][rank].split()
        _, batch, stage = self.table["position"].get(rank, "0 0 -").split()
        what = f"hangs or has died {f'in batch {int(batch)} of {stage}' if int(batch) else 'before the first batch'}"
        for child in self.children:
            if str(child.pid) == pid:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = child.wait(5)
                    what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        error = self.table["error"].get(rank)
        return f"rank {rank} (process {pid} on {host}) {f'ended with {error}' if error else what}"

    def _take_children(self, trainer: Trainer) -> None:
        """Takes over the processes that Lightning has started: its observer kills all ranks without naming one."""
        started: list[subprocess.Popen] = getattr(trainer.strategy.launcher, "procs", [])
        self.children, started[:] = self.children + started, []

    def _end_children(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(until - time.monotonic(), 0))
            child.kill()
            child.wait()


def _report_for_rank_zero(trainer: Trainer, line: str, came: bool) -> None:
    """Prints the line and, if rank zero has claimed the folder, puts it into result.json, unless an end is there."""
    if came:
        with contextlib.suppress(OSError, UnreadableResultError):
            path = Path(trainer.default_root_dir, RESULT_FILE)
            result = Result.read(path)
            if result.status != "running":
                return
            result.status, result.error = "failed", line
            result.write(path)
    print(f"error: {line}", file=sys.stderr, flush=True)


def _is_stopped(pid: str, host: str) -> bool:
    """Whether a process of this machine does not run because of SIGSTOP or a debugger; OSError if it has died."""
    return host == os.uname().nodename and Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] in "Tt"
