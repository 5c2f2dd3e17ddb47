"""Ends a distributed run when a rank hangs or dies, and names that rank: all others wait for it in a collective."""

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
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

GRACE = 5.0
"""Seconds in which all ranks that wait for the same one get their error, and in which a process ends by itself."""

GLOO_ERRORS = ("gloo", "pair closure", "monitoredBarrier")  # they have no class of their own


class HangWatchdog(Callback):
    """Sets the timeout of collectives and reports the rank at fault when one fails; must be the first callback.

    Within steps a collective waits `step_timeout` for the slowest rank, and `startup_timeout` elsewhere: at start-up,
    in the first batch of a loop, while a checkpoint is written, between epochs. Each rank keeps its position in the
    store. A rank whose collective fails notes that there: at fault is the rank that does not, and of several the one
    furthest behind. On a timeout NCCL aborts the process instead, and leaves the dump of its flight recorder.

    Args:
        startup_timeout: seconds; `conf/trainer/` gives the process group the same.
        step_timeout: seconds.
    """

    def __init__(self, startup_timeout: float = 1800.0, step_timeout: float = 120.0) -> None:
        for name, seconds in (("startup_timeout", startup_timeout), ("step_timeout", step_timeout)):
            expect(seconds > 0, f"callbacks.hang_watchdog.{name}={seconds}", "seconds above 0")
        self.startup_timeout, self.step_timeout = timedelta(seconds=startup_timeout), timedelta(seconds=step_timeout)
        self.timeout = self.startup_timeout
        self.loops, self.first_batch = 0, True
        self.store: Store | None = None
        self.children: list[subprocess.Popen] = []
        self.processes: dict[int, str] = {}
        self.positions: dict[int, str] = {}
        self.place = ""

    def before_launch(self, trainer: Trainer) -> None:
        """Notes this process in the store before there is a process group: a rank that does not come is named too."""
        if trainer.world_size == 1:
            return
        if torch.cuda.is_available():
            os.environ |= {"TORCH_FR_BUFFER_SIZE": "2000", "TORCH_NCCL_DUMP_ON_TIMEOUT": "1"}
            os.environ["TORCH_FR_DUMP_TEMP_FILE"] = f"{trainer.default_root_dir}/nccl_flight_recorder_rank"
        environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
        address, port = environment.main_address, environment.main_port
        self.place = f"{address}:{port}"
        store = open_store(address, port, trainer.global_rank, self.startup_timeout)
        self.store = PrefixStore(f"watchdog/{trainer.default_root_dir}", store)
        self.store.set(f"process/{trainer.global_rank}", f"{os.getpid()} {os.uname().nodename}")

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._between_steps()
        if self.store is not None:
            self.processes = _read(self.store, "process", range(trainer.world_size))
            if trainer.strategy.root_device.type == "cpu":  # gloo notices at once that a process has died, NCCL may not
                self._take_children(trainer)

    def _between_steps(self, *_: Any, **__: Any) -> None:
        self.loops, self.first_batch = self.loops + 1, True
        self._set_timeout(self.startup_timeout)

    on_train_start = on_train_epoch_start = on_validation_start = on_test_start = _between_steps
    on_train_epoch_end = on_validation_epoch_end = on_test_epoch_end = _between_steps

    def _start_batch(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if self.store is not None:  # equal positions are equal work, and a larger one is later
            position = f"{self.loops:09} {batch_idx + 1:09} {trainer.state.stage}"
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
        if self.store is not None and timeout != self.timeout:
            dist.set_timeout(timeout)
            self.timeout = timeout

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Ends this rank if a collective has failed; an error of its own passes, and makes those of the others fail.

        Raises:
            UsageError: in rank zero; the line names the rank at fault.
            SystemExit: in the other ranks, of which the lowest prints the line if rank zero is at fault.
        """
        store, rank, ranks = self.store, trainer.global_rank, range(trainer.world_size)
        if store is None or isinstance(exception, SystemExit):
            return
        self._take_children(trainer)
        if not isinstance(exception, dist.DistError) and not any(word in str(exception) for word in GLOO_ERRORS):
            self._end_children(0)
            return
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun sends it to all when one rank has died
        waiting = _within(3 * GRACE, lambda: self._waiting(store, rank, ranks))
        if waiting is None:  # the store is in rank zero, which is at fault, or in torchrun
            waiting = list(ranks if store_outlives_workers() else ranks[1:])
        positions = {r: self.positions.get(r, "") for r in ranks if r not in waiting}
        at_fault = [r for r in positions if positions[r] == min(positions.values())]
        if not at_fault:
            return
        line = f"{'; '.join(map(self._describe, at_fault))}: {ADVICE}"
        if torch.cuda.is_available():
            line += f" (NCCL's flight recorder, on a timeout: {os.environ['TORCH_FR_DUMP_TEMP_FILE']}*)"
        if 0 < rank == min(waiting):
            _report_for_rank_zero(trainer, line)
        for pid, host in (self.processes[r].split() for r in at_fault if r in self.processes):
            if host == os.uname().nodename:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        self._end_children(GRACE)
        raise (SystemExit(2) if rank else UsageError(line)) from exception

    def _waiting(self, store: Store, rank: int, ranks: range) -> list[int]:
        """Notes that a collective has failed in this rank; returns the ranks in which one has, and reads the table."""
        store.set(f"waiting/{rank}", "")
        until, waiting = time.monotonic() + GRACE, [rank]
        while len(waiting) < len(ranks) - 1 and time.monotonic() < until:
            time.sleep(0.1)
            waiting = list(_read(store, "waiting", ranks))
        self.processes, self.positions = _read(store, "process", ranks), _read(store, "position", ranks)
        return waiting

    def _describe(self, rank: int) -> str:
        if rank not in self.processes:
            return f"rank {rank} did not come to {self.place} within {self.startup_timeout.total_seconds():.0f} s"
        pid, host = self.processes[rank].split()
        _, batch, stage = self.positions.get(rank, "0 0 -").split()
        what = f"hangs or has died {f'in batch {int(batch)} of {stage}' if int(batch) else 'before the first batch'}"
        for child in self.children:
            if str(child.pid) == pid:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = child.wait(GRACE)
                    what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        return f"rank {rank} (process {pid} on {host}) {what}"

    def _take_children(self, trainer: Trainer) -> None:
        """Takes over the processes that Lightning has started: its observer kills all ranks without naming one."""
        started: list[subprocess.Popen] = getattr(trainer.strategy.launcher, "procs", [])
        self.children += started
        started.clear()

    def _end_children(self, seconds: float) -> None:
        for reader in multiprocessing.active_children():  # a stopped one would outlive this process
            reader.kill()
        until = time.monotonic() + seconds
        for child in self.children:
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(max(until - time.monotonic(), 0))
            child.kill()
            child.wait()


def _read(store: Store, name: str, ranks: range) -> dict[int, str]:
    keys = {rank: f"{name}/{rank}" for rank in ranks}
    return {rank: store.get(key).decode() for rank, key in keys.items() if store.check([key])}


def _report_for_rank_zero(trainer: Trainer, line: str) -> None:
    """Prints the line and writes it to result.json, unless rank zero has written an end there."""
    path = Path(trainer.default_root_dir, RESULT_FILE)
    with contextlib.suppress(OSError, UnreadableResultError):
        result = Result.read(path)
        if result.status != "running":
            return
        result.status, result.error = "failed", line
        result.write(path)
    print(f"error: {line}", file=sys.stderr, flush=True)


def _within(seconds: float, ask: Callable[[], list[int]]) -> list[int] | None:
    """Returns `ask()`, or None if the store is gone or does not answer: torch waits for a stopped one for ever."""
    answers: list[list[int]] = []

    def run() -> None:
        with contextlib.suppress(RuntimeError):
            answers.append(ask())

    asking = threading.Thread(target=run, daemon=True)
    asking.start()
    asking.join(seconds)
    return answers[0] if answers else None
