"""Notices when a process of a job hangs, and ends all of them with one line: others would wait half an hour for it."""

import contextlib
import dataclasses
import itertools
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from callbacks.beats import COLLECTIVES, WAITING, Exchange, where
from callbacks.effort import Effort, effort
from callbacks.hangs import Beat, Judge, Point, Verdict, alive, gone, started
from callbacks.last_words import tell
from callbacks.of_run import find_callback
from callbacks.run_record import RunRecord
from callbacks.whereabouts import Whereabouts
from infvit.errors import UsageError
from infvit.run.ranks import arrival, launcher

EVERY = 2.0
"""Seconds between two beats, at most."""

GRACE = 20.0
"""Seconds in which others are expected to do what only one should."""


class Heartbeat(Callback):
    """Watches the steps of all processes of a run, and what the only one reads; must be the first callback.

    A thread of each process sends a beat every few seconds to the store by which the processes will find each other;
    rank 0 hears all, the others hear rank 0. The main thread only notes where it is. A process hangs if it does not
    come, if its beats stop, or if it is the last one in a step for longer than `patience`, 10 times the longest step
    so far and twice the longest first one. Elsewhere it may take as long as it likes while it works and no other waits
    for it, but not do nothing for longer than `patience`: before training, in the very first batch of training,
    validation and test (readers start, code is compiled), and from the last batch of an epoch or evaluation to the next
    one (files are written). How long others may wait for one that works is in `Judge`.

    A single process has nobody who waits for it: only its reading of images is watched.

    Args:
        patience: seconds that a step may take in any case, and that a process may do nothing elsewhere.
    """

    def __init__(self, patience: float) -> None:
        if patience <= 0:
            raise UsageError(f"callbacks.hang_watchdog.patience={patience} is no time: expected seconds")
        self.patience, self.every = patience, min(EVERY, patience / 5)
        self.judge = Judge()
        self.beat = Beat(0, os.getpid(), os.uname().nodename, started(os.getpid()))
        self.at = Whereabouts(patience)
        self.effort = self.counted = Effort()
        self.numbers = itertools.count(1)
        self.over, self.ending = threading.Event(), threading.Event()
        self.verdict: Verdict | None = None
        self.exchange: Exchange | None = None

    # Where the main thread is.

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that goes on within an epoch does not start it."""
        self.at.compiles = getattr(pl_module.net, "_compiled_call_impl", None) is not None
        self.at.begin("training")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at.begin("training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at.begin("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at.begin("training")
        self.at.rest()

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at.begin("the test")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.at.at(Point.STARTS, batch_idx)

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        self.at.at(Point.RUNS_BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at.at(Point.HAS_RUN_BACKWARD)

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self.at.at(Point.UPDATES)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.at.end_of(batch_idx, trainer.num_training_batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.at.at(Point.STARTS, batch_idx)

    on_test_batch_start = on_validation_batch_start

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self.at.end_of(batch_idx, sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches))

    on_test_batch_end = on_validation_batch_end

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at.rest()

    on_train_end = on_test_end = on_train_epoch_end

    # What the threads do.

    def begin(self, trainer: Trainer) -> None:
        """Starts the threads, before the processes know each other: one may hang until they do."""
        self.beat = dataclasses.replace(self.beat, rank=trainer.global_rank)
        if trainer.world_size > 1:
            of = range(trainer.world_size) if trainer.global_rank == 0 else range(1)
            environment = trainer.strategy.cluster_environment  # type: ignore[attr-defined]
            place = environment.main_address, environment.main_port
            self.exchange = Exchange(partial(self._current, trainer), of, self.every, *place)
            self.exchange.start()
        threading.Thread(target=self._watch, args=(trainer,), daemon=True).start()

    def _current(self, trainer: Trainer) -> Beat:
        place, module = where()
        counted = effort(besides=[process.pid for process in _processes(trainer)])
        if not module.startswith(COLLECTIVES):
            done = counted - self.counted  # less than nothing if a process has ended
            self.effort += Effort(max(done.worked, 0.0), max(done.moved, 0.0))
        self.counted = counted
        position, watched = self.at.now
        return dataclasses.replace(
            self.beat,
            position=position,
            doing=self.at.doing,
            watched=watched,
            effort=self.effort,
            number=next(self.numbers),
            place=place,
            waits=module.startswith(WAITING),
            patience=self.at.patience,
            over=self.exchange is not None and self.exchange.over.is_set(),
            at_fault=self.verdict.processes if self.verdict else None,
        )

    def _watch(self, trainer: Trainer) -> None:
        """Looks at the beats, and ends this process if one hangs. Its clock stands while this process is stopped."""
        clock, before = 0.0, time.monotonic()
        record = find_callback(trainer, RunRecord)
        own = 0.0 if record is None else before - record.since
        all_there = max(self.patience, arrival(own))  # Lightning starts the others, and each finds its data
        answered, answers, missing = 0.0, 0, set[int]()
        while not self.over.wait(self.every):
            now = time.monotonic()
            clock, before = clock + min(now - before, 2 * self.every), now
            if self.exchange is None:
                self._judged(trainer, self.judge.stall([self._current(trainer)], clock))
                continue
            heard = list(self.exchange.beats.values())
            if self.exchange.absent:
                self._judged(trainer, self.exchange.silence(clock) if clock > all_there else None)
                continue
            if self.beat.rank and heard[0].over:
                continue
            if self.exchange.answers != answers:
                answered, answers = clock, self.exchange.answers
                self._judged(trainer, self.judge.silence(heard, clock, self.patience))
                if self.beat.rank == 0:
                    self._judged(trainer, self.judge.stall(heard, clock))
                elif heard[0].at_fault is not None:
                    self._end(trainer, Verdict("", heard[0].at_fault))
            elif clock - answered > self.patience:
                self._judged(trainer, self.exchange.silence(clock - answered))
            if launcher() is None:
                continue  # Lightning's processes: `callbacks.accidents` knows more of their end
            for beat in heard:
                if beat.host == self.beat.host and not beat.over and beat.started and not alive(beat.process):
                    self._judged(trainer, gone(beat) if beat.rank in missing else None)
                    missing.add(beat.rank)

    def _judged(self, trainer: Trainer, verdict: Verdict | None) -> None:
        """Ends this process; rank 0 tells why, or rank 1 if it cannot, or another one if nobody has told it by then."""
        if verdict is None:
            return
        self.verdict = verdict
        if self.exchange is None and _end_readers() and self.over.wait(GRACE):
            return  # the main thread's error is that its readers are gone, and it tells `verdict`
        if self.beat.rank > 1:
            self.ending.set()
            time.sleep(GRACE)
        self._end(trainer, verdict)

    def _end(self, trainer: Trainer, verdict: Verdict) -> None:
        self.ending.set()
        try:
            if verdict.line:
                tell(trainer, verdict.line, first_was_heard=self.exchange is None or 0 in self.exchange.beats)
                if self.exchange is not None:
                    time.sleep(3 * self.every)  # until the others have it from rank 0's next beat
            for process in verdict.processes:
                host, number, _ = process
                if host == self.beat.host and number != self.beat.pid and alive(process):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(number, signal.SIGKILL)
            _end_readers()
            _reap(_processes(trainer))
        finally:  # the terminal may be gone, or the disk full
            os._exit(2)

    # What the main thread does at the end.

    def hear_why(self) -> None:
        """A collective fails when another process dies or has an error: until it is known which, or three beats long.

        What started the processes ends all when one has ended. This one has its own end to tell first.
        """
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        until = time.monotonic() + 3 * self.every
        while time.monotonic() < until and not self.ending.wait(self.every / 20):
            if self.exchange is not None and any(beat.over for beat in self.exchange.beats.values()):
                return

    def leave(self) -> None:
        """To be called when the run is over, or has an error of its own to tell; does not return if it has not."""
        while self.ending.is_set():
            with contextlib.suppress(BaseException):  # torchrun ends our readers, and torch raises that here
                threading.Event().wait()
        self.over.set()
        if self.exchange is not None:
            self.exchange.over.set()
            self.exchange.join(2 * self.every)


@contextlib.contextmanager
def at_rest(trainer: Trainer) -> Iterator[None]:
    """Around what may take long within a step: rank 0 writes to a slow disk, and the others wait for it."""
    heartbeat = find_callback(trainer, Heartbeat)
    if heartbeat is None:
        yield
        return
    _, watched_before = heartbeat.at.now
    heartbeat.at.rest()
    yield
    heartbeat.at.go_on(watched_before)


@contextlib.contextmanager
def watched(trainer: Trainer) -> Iterator[None]:
    """Around the training and the test of a run with a `Heartbeat`: no process counts as gone that has just ended."""
    heartbeat = find_callback(trainer, Heartbeat)
    if heartbeat is not None:
        heartbeat.begin(trainer)
    try:
        yield
        if trainer.world_size > 1:
            trainer.strategy.barrier("all is done")
    except RuntimeError as error:
        if heartbeat is not None and heartbeat.exchange is not None and launcher() is not None:
            heartbeat.hear_why()
        if heartbeat is not None and heartbeat.exchange is None and heartbeat.verdict is not None:
            raise UsageError(heartbeat.verdict.line) from error
        raise
    finally:
        if heartbeat is not None:
            heartbeat.leave()


def _end_readers() -> bool:
    """Ends the processes that read images, if there are any: a stopped one would stay behind."""
    readers = multiprocessing.active_children()
    for reader in readers:
        reader.kill()
    return bool(readers)


def _processes(trainer: Trainer) -> list[subprocess.Popen]:
    """The other ranks, where Lightning has started them from this one."""
    return getattr(trainer.strategy.launcher, "procs", [])


def _reap(processes: list[subprocess.Popen]) -> None:
    """Waits for processes that are about to end by themselves, and ends them if they do not."""
    until = time.monotonic() + GRACE / 4
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(until - time.monotonic(), 0))
        process.kill()
        process.wait()
