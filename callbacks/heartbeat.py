"""Notices when a process of a job hangs, and ends all of them with one line: others would wait half an hour for it."""

import contextlib
import dataclasses
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed import PrefixStore, Store, TCPStore

from callbacks.hangs import ALL_STOP, Beat, Judge, Point, Verdict, alive, gone, silent, started
from callbacks.ranks import launcher
from callbacks.result import RunRecord
from infvit.compare import Result, UnreadableResultError
from infvit.errors import UsageError

EVERY = 2.0
"""Seconds between two beats, at most."""

GRACE = 20.0
"""Seconds in which others are expected to do what only one should."""

OURS = ("callbacks", "data", "infvit", "lightning", "train", "__main__")
WAITING = ("torch.distributed", "torch.nn.parallel", "torch.autograd.graph")
"""Modules in which a main thread waits for the other processes: in collectives, and in backward passes with them."""


class Heartbeat(Callback):
    """Watches the steps of all processes of a run, and what the only one reads; must be the first callback.

    A thread of each process sends a beat every few seconds to the store by which the processes found each other; rank
    0 hears all, the others hear rank 0. The main thread only notes where it is. A process hangs if its beats stop, or
    if it is the last one in a step for longer than `patience`, 10 times the longest step so far and twice the longest
    first one. Not watched but for stopped beats: the first batch of an epoch and of an evaluation (starting readers,
    compilation), checkpoints, and all that is between the last batch of one and the first one of the next.

    A single process has nobody who waits for it: only its reading of images is watched.

    Args:
        patience: seconds that a step may take in any case.
    """

    def __init__(self, patience: float) -> None:
        if patience <= 0:
            raise UsageError(f"callbacks.heartbeat.patience={patience} is no time: expected seconds")
        self.patience, self.every = patience, min(EVERY, patience / 5)
        self.judge = Judge()
        self.beat = Beat(0, os.getpid(), os.uname().nodename, started(os.getpid()))
        self.loops, self.loop = 0, ""
        self.begun = self.longest = self.longest_first = 0.0
        self.first = True
        self.started = self.others = False
        self.numbers = itertools.count(1)
        self.answers = 0
        self.beats: dict[int, Beat] = {}
        self.over, self.ending = threading.Event(), threading.Event()
        self.verdict: Verdict | None = None
        self.exchange: threading.Thread | None = None

    @staticmethod
    def of(trainer: Trainer) -> "Heartbeat | None":
        """The one that watches this run, if one does."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        return next((callback for callback in callbacks if isinstance(callback, Heartbeat)), None)

    # Where the main thread is.

    def _begin(self, loop: str) -> None:
        self.loops, self.loop, self.first, self.begun = self.loops + 1, loop, True, time.monotonic()
        self._at(0, Point.FETCHES, watched=False)

    def _at(self, batch: int, point: Point, watched: bool | None = None) -> None:
        what = "waiting for the images of" if point == Point.FETCHES else "in"
        self.beat = dataclasses.replace(
            self.beat,
            position=(self.loops, batch, point),
            doing=f"{what} batch {batch + 1} of {self.loop}",
            watched=self.beat.watched if watched is None else watched,
        )

    def _end_of(self, batch: int, batches: float) -> None:
        now = time.monotonic()
        if self.first:
            self.longest_first = max(self.longest_first, now - self.begun)
        elif self.beat.watched:
            self.longest = max(self.longest, now - self.begun)
        self.first, self.begun = False, now
        self._at(batch + 1, Point.FETCHES, watched=batch + 1 < batches)

    def _rest(self) -> None:
        self.beat = dataclasses.replace(self.beat, watched=False)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("training")

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("validation")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("training")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._begin("the test")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._at(batch_idx, Point.STARTS)

    def on_before_backward(self, trainer: Trainer, *_: Any) -> None:
        self._at(self.beat.position[1], Point.RUNS_BACKWARD)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._at(self.beat.position[1], Point.HAS_RUN_BACKWARD)

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        self._at(self.beat.position[1], Point.UPDATES)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._end_of(batch_idx, trainer.num_training_batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._at(batch_idx, Point.STARTS)

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._end_of(batch_idx, sum(trainer.num_val_batches))

    def on_test_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self._at(batch_idx, Point.STARTS)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._end_of(batch_idx, sum(trainer.num_test_batches))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rest()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rest()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rest()

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Within a step: rank 0 may write to a slow disk, and the others wait for it."""
        self._rest()

    # What the threads do.

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Starts the threads, when the processes know each other."""
        if self.started:
            return
        self.started, self.others = True, trainer.world_size > 1
        self.beat = dataclasses.replace(self.beat, rank=trainer.global_rank)
        if self.others:
            store = _store(self.every)
            _send(store, self.beat)
            trainer.strategy.barrier("the first beats")
            self.exchange = threading.Thread(target=self._exchange, args=(store, trainer.world_size), daemon=True)
            self.exchange.start()
        threading.Thread(target=self._watch, args=(trainer,), daemon=True).start()

    def _exchange(self, store: Store | None, world_size: int) -> None:
        """Sends and fetches beats. Where the store's process is stopped this waits for ever, and `_watch` sees it."""
        ranks = range(world_size) if self.beat.rank == 0 else [0]
        last = False
        while not last:
            last = self.over.wait(self.every)
            try:
                store = store or _store(self.every)
                _send(store, self._current())
                found = store.multi_get([str(rank) for rank in ranks])
                self.beats = dict(zip(ranks, map(_read, found), strict=True))
                self.answers += 1
            except (RuntimeError, ValueError):
                store = None

    def _current(self) -> Beat:
        place, waits = _where()
        return dataclasses.replace(
            self.beat,
            number=next(self.numbers),
            place=place,
            waits=waits,
            patience=max(self.patience, 10 * self.longest, 2 * self.longest_first),
            over=self.over.is_set(),
            at_fault=self.verdict.processes if self.verdict else None,
        )

    def _watch(self, trainer: Trainer) -> None:
        """Looks at the beats, and ends this process if one hangs. Its clock stands while this process is stopped."""
        clock = answered = 0.0
        before, answers = time.monotonic(), 0
        missing: set[int] = set()
        while not self.over.wait(self.every):
            now = time.monotonic()
            clock, before = clock + min(now - before, 2 * self.every), now
            if not self.others:
                self._judged(trainer, self.judge.stall([self._current()], clock))
                continue
            heard = list(self.beats.values())
            if self.beat.rank and heard and heard[0].over:
                continue
            if self.answers != answers:
                answered, answers = clock, self.answers
                self._judged(trainer, self.judge.silence(heard, clock, self.patience))
                if self.beat.rank == 0:
                    self._judged(trainer, self.judge.stall(heard, clock))
                elif heard[0].at_fault is not None:
                    self._end(trainer, Verdict("", heard[0].at_fault))
            elif clock - answered > self.patience:
                self._judged(trainer, self._no_answer(clock - answered))
            if launcher() is None:
                continue  # Lightning's processes: `callbacks.accidents` knows more of their end
            for beat in heard:
                if beat.host == self.beat.host and not beat.over and beat.started and not alive(beat.process):
                    self._judged(trainer, gone(beat) if beat.rank in missing else None)
                    missing.add(beat.rank)

    def _no_answer(self, seconds: float) -> Verdict:
        if 0 in self.beats and self.beat.rank and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True):
            return silent(self.beats[0], seconds)  # it has the store
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return Verdict(f"what started the processes does not answer at {where} for {seconds:.0f} s: {ALL_STOP}")

    def _judged(self, trainer: Trainer, verdict: Verdict | None) -> None:
        """Ends this process; rank 0 tells why, or rank 1 if it cannot, or another one if nobody has told it by then."""
        if verdict is None:
            return
        self.verdict = verdict
        if not self.others and _end_readers() and self.over.wait(GRACE):
            return  # the main thread's error is that its readers are gone, and it tells `verdict`
        if self.beat.rank > 1:
            self.ending.set()
            time.sleep(GRACE)
        self._end(trainer, verdict)

    def _end(self, trainer: Trainer, verdict: Verdict) -> None:
        self.ending.set()
        if verdict.line:
            tell(trainer, verdict.line)
            if self.others:
                time.sleep(3 * self.every)  # until the others have it from rank 0's next beat
        for process in verdict.processes:
            host, number, _ = process
            if host == self.beat.host and number != self.beat.pid and alive(process):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
        _end_readers()
        _reap(getattr(trainer.strategy.launcher, "procs", []))
        os._exit(2)

    # What the main thread does at the end.

    def leave(self) -> None:
        """To be called when the run is over, or has an error of its own to tell; does not return if it has not."""
        if self.ending.is_set():
            threading.Event().wait()
        self.over.set()
        if self.exchange is not None:
            self.exchange.join(2 * self.every)


@contextlib.contextmanager
def watched(trainer: Trainer) -> Iterator[None]:
    """Around the training and the test of a run with a `Heartbeat`: no process counts as gone that has just ended."""
    heartbeat = Heartbeat.of(trainer)
    try:
        yield
        if trainer.world_size > 1:
            trainer.strategy.barrier("all is done")
    except RuntimeError as error:
        if heartbeat is not None and heartbeat.others and launcher() is not None:
            heartbeat.ending.wait(3 * heartbeat.every)  # a collective fails when another process dies: which?
        if heartbeat is not None and not heartbeat.others and heartbeat.verdict is not None:
            raise UsageError(heartbeat.verdict.line) from error
        raise
    finally:
        if heartbeat is not None:
            heartbeat.leave()


def tell(trainer: Trainer, line: str) -> None:
    """From any thread of any rank: prints a line and leaves it in result.json, unless that tells of an end already."""
    record = RunRecord.of(trainer)
    left = None
    if record is not None and not record.writes:
        with contextlib.suppress(OSError, UnreadableResultError):
            left = Result.read(record.path)
            if left.status != "running":
                return
    os.write(2, f"\nerror: {line}\n".encode())  # the main thread may hold Python's own lock of the stream
    if left is not None and record is not None:
        left.status, left.error = "failed", line
        left.write(record.path)
    elif record is not None and record.writes:
        record.failed(line)


def _store(every: float) -> Store:
    """A connection of its own: that of the process group may wait in a collective."""
    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    store = TCPStore(address, port, is_master=False, timeout=timedelta(seconds=5 * every), wait_for_workers=False)
    attempt, job = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), HydraConfig.get().runtime.output_dir
    return PrefixStore(f"infvit/heartbeat/{attempt}/{job}", store)


def _send(store: Store, beat: Beat) -> None:
    store.set(str(beat.rank), json.dumps(dataclasses.asdict(beat)))


def _read(content: bytes) -> Beat:
    found = json.loads(content)
    found["position"] = tuple(found["position"])
    if found["at_fault"] is not None:
        found["at_fault"] = tuple(map(tuple, found["at_fault"]))
    return Beat(**found)


def _where() -> tuple[str, bool]:
    """The main thread's innermost place that a user may know, and whether it waits there for other processes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    waits = frame is not None and frame.f_globals.get("__name__", "").startswith(WAITING)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] in OURS:
            path = Path(frame.f_code.co_filename)
            return f"{Path(*path.parts[-1 - module.count('.') :])}:{frame.f_lineno}", waits
        frame = frame.f_back
    return "?", waits


def _end_readers() -> bool:
    """Ends the processes that read images, if there are any: a stopped one would stay behind."""
    readers = multiprocessing.active_children()
    for reader in readers:
        reader.kill()
    return bool(readers)


def _reap(processes: list[subprocess.Popen]) -> None:
    """Waits for processes that are about to end by themselves, and ends them if they do not."""
    until = time.monotonic() + GRACE / 4
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(until - time.monotonic(), 0))
        process.kill()
        process.wait()
