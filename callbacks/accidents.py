"""What ends a run from outside of it, told in one line: memory that runs out, processes that die."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies.launchers import subprocess_script

from callbacks.hang_watchdog import GRACE, watched
from callbacks.hangs import ALL_STOP
from callbacks.last_words import tell
from callbacks.of_run import find_callback
from callbacks.run_record import RunRecord
from data.datamodule import ImageDataModule
from infvit.errors import Interrupted, UsageError, is_out_of_memory
from infvit.module import Classifier

LOOKS = 1.0
"""Seconds between two looks at the other processes."""

READER_DIED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) .*?(killed by signal: [\w ]+|exited unexpectedly)"
)


@contextlib.contextmanager
def told(trainer: Trainer, module: Classifier, data: ImageDataModule) -> Iterator[None]:
    """Around the training and the test of a run: accidents become UsageErrors, and no process outlives the others."""
    with _ended_together(trainer):
        try:
            with watched(trainer):
                yield
        except (RuntimeError, MemoryError) as error:
            line = out_of_memory(error, trainer, module, data) or reader_died(error)
            if line is None:
                raise
            raise UsageError(line) from error


@contextlib.contextmanager
def told_of_tests() -> Iterator[None]:
    """Around a measurement: memory that runs out while images are tested becomes a UsageError."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or "test_step" not in _steps(error):
            raise
        line = "out of memory: give fewer images a device, data.module.eval_batch_size=N, which changes no result"
        raise UsageError(f"{line} (256 unless the run's config or data= say otherwise)") from error


def out_of_memory(error: BaseException, trainer: Trainer, module: Classifier, data: ImageDataModule) -> str | None:
    """Which batch was too large, and the settings with which the recipe's batch is kept; None for another error."""
    if not is_out_of_memory(error):
        return None
    if _steps(error) & {"validation_step", "test_step"}:
        size = data.eval_batch_size
        return (
            f"out of memory with {size} images a device in evaluation: give data.module.eval_batch_size="
            f"{max(size // 2, 1)}, which changes no result"
        )
    now, share = trainer.accumulate_grad_batches, data.per_device(trainer)
    images = now * share
    line = (
        f"out of memory with batches of {share} images a device (recipe.batch_size={data.batch_size}, "
        f"{trainer.world_size} × {now} of them a step): "
    )
    pairs = 1 if module.mixup is None else 2
    more = next((n for n in range(2 * now, images + 1) if images % (n * pairs) == 0), None)
    if more is None:
        return line + "smaller ones do not keep the recipe, give more devices or a smaller model"
    return line + f"trainer.accumulate_grad_batches={more} keeps the recipe's batch, {images // more} images at a time"


def _steps(error: BaseException) -> set[str]:
    """The names of the functions that it came through."""
    return {frame.name for frame in traceback.extract_tb(error.__traceback__)}


def reader_died(error: BaseException) -> str | None:
    """Which process that reads images died, and of what; None for another error."""
    found = READER_DIED.search(str(error))
    if found is None:
        return None
    return (
        f"a process that reads images died (process {found[1]}, {found[2]}), perhaps for want of memory: go on with "
        "resume=auto, with fewer of them by data.module.workers=N"
    )


@contextlib.contextmanager
def _ended_together(trainer: Trainer) -> Iterator[None]:
    """Where Lightning started the other processes: when one dies all end, and the first one names it.

    Lightning's own observer would kill all without a word. Under torchrun and SLURM these do it.
    """
    launcher = trainer.strategy.launcher
    if not isinstance(launcher, subprocess_script._SubprocessScriptLauncher):
        yield
        return
    of_lightning = isinstance(launcher.cluster_environment, LightningEnvironment)
    parent = os.getppid() if trainer.local_rank and of_lightning else None
    if parent:
        threading.Thread(target=_end_with_parent, args=(parent, trainer), daemon=True).start()
    done = threading.Event()
    before = subprocess_script._launch_process_observer

    def observe(child_processes: list[subprocess.Popen]) -> None:
        threading.Thread(target=_observe, args=(child_processes, done, trainer), daemon=True).start()

    subprocess_script._launch_process_observer = observe
    try:
        yield
    except Interrupted:
        raise
    except BaseException as error:
        if parent and isinstance(error, RuntimeError):
            time.sleep(3 * LOOKS)  # a collective fails when the other process dies
            if os.getppid() != parent:
                _end_alone(parent, trainer)
        dead = _dead(launcher.procs) if isinstance(error, RuntimeError) else None
        for process in launcher.procs:
            process.kill()
            process.wait()
        if dead:
            raise UsageError(dead) from error
        raise
    finally:
        done.set()
        subprocess_script._launch_process_observer = before


def _dead(processes: list[subprocess.Popen]) -> str | None:
    """Which process has ended with an error; one that is just about to is waited for."""
    until = time.monotonic() + 5
    while processes and time.monotonic() < until:
        for rank, process in enumerate(processes, 1):
            if process.poll():
                return _obituary(rank, process)
        time.sleep(LOOKS / 10)
    return None


def _obituary(rank: int, process: subprocess.Popen) -> str:
    code: Any = process.returncode
    how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}, its error above"
    return f"rank {rank} (process {process.pid} on {os.uname().nodename}) {how}: {ALL_STOP}"


def _observe(processes: list[subprocess.Popen], done: threading.Event, trainer: Trainer) -> None:
    """In the first process: ends all when one has died and this one hangs in a collective that waits for it."""
    while not done.wait(LOOKS):
        for rank, process in enumerate(processes, 1):
            if process.poll():
                if done.wait(GRACE):
                    return
                line = _obituary(rank, process)
                print(f"error: {line}", file=sys.stderr, flush=True)
                for other in processes:
                    other.kill()
                record = find_callback(trainer, RunRecord)
                if record is not None:
                    record.failed(line)
                os._exit(2)


def _end_with_parent(parent: int, trainer: Trainer) -> None:
    """In the others: the first process is their parent, and when it is gone they have nothing to wait for."""
    while os.getppid() == parent:
        time.sleep(LOOKS)
    time.sleep(GRACE)
    _end_alone(parent, trainer)


def _end_alone(parent: int, trainer: Trainer) -> None:
    if trainer.local_rank == 1:
        first = trainer.global_rank - trainer.local_rank
        tell(trainer, f"rank {first} (process {parent} on {os.uname().nodename}) is gone: {ALL_STOP}")
    os._exit(2)
