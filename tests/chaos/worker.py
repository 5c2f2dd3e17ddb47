"""Kills or stops ranks of a distributed run and processes that read images, or makes them sleep or loop for ever.

Each time all processes must end within two minutes, the command must fail and name the one at fault, result.json must
name it too, and the same command must resume the run and finish it in the end.
"""

import argparse
import json
import os
import pkgutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from types import FrameType

from infvit.module import Classifier
from tests.chaos import Fault
from tests.chaos.kill import newest

ROOT = Path(__file__).parents[2]
PROGRAM = ["-m", "tests.chaos.worker"]
LAUNCHERS = {
    "lightning": [sys.executable],
    "torchrun": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node={ranks}"],
}
RUN = [
    "experiment=digits",
    "data/loader=torch",
    "data.module.workers=1",
    "logger=csv",
    "size.depth=1",
    "size.dim=16",
    "recipe.batch_size=16",
    "recipe.warmup_epochs=0",
    "checkpoint.every_minutes=0.003",
    "callbacks.attention_maps=null",
    "hydra.run.dir=run",
    "resume=auto",
]
STEPS = 1437 // 16
"""Steps of an epoch."""

SECONDS = 120
"""Seconds in which all processes must end."""

LOOP = signal.SIGALRM
"""The signal after which a process of this harness loops for ever in its next step."""

STUCK = {
    "before it claims its folder": "train.train",
    "before it is ready": "train.build",
    "in the first batch": "infvit.module.Classifier.training_step",
    "while a checkpoint is written": "infvit.run.checkpoint.AtomicCheckpointIO.save_checkpoint",
    "at an epoch's end": "callbacks.run_record.RunRecord.on_train_epoch_end",
}
"""The function that does not return in a process of this harness, outside the steps."""


@dataclass(frozen=True)
class Case:
    """A signal for a rank or for a process that reads its images, or where the rank sleeps or loops for ever.

    `by` are the launchers under which that can happen.
    """

    number: int
    rank: int
    reader: bool = False
    stuck: str = ""
    by: tuple[str, ...] = tuple(LAUNCHERS)

    @property
    def kind(self) -> str:
        faults = {signal.SIGKILL: "is killed", signal.SIGSTOP: "is stopped", LOOP: "is in an endless loop", 0: "sleeps"}
        who = f"a reader of rank {self.rank}" if self.reader else f"rank {self.rank}"
        return f"{who} {faults[self.number]} {self.stuck}".rstrip()

    @property
    def starts(self) -> bool:
        """Whether the rank gets as far as noting its process in the store."""
        return not self.stuck.startswith("before it ")


CASES = [
    Case(signal.SIGKILL, 0),
    Case(signal.SIGKILL, 1),
    Case(signal.SIGSTOP, 0),
    Case(signal.SIGSTOP, 1),
    Case(LOOP, 0),
    Case(LOOP, 1),
    Case(signal.SIGKILL, 1, reader=True),
    Case(signal.SIGSTOP, 1, reader=True),
    Case(0, 1, stuck="before it is ready"),
    Case(0, 1, stuck="in the first batch"),
    Case(0, 0, stuck="while a checkpoint is written"),
    Case(0, 1, stuck="at an epoch's end"),
    Case(LOOP, 0, stuck="in the first batch"),
    Case(LOOP, 1, stuck="at an epoch's end"),
    Case(0, 0, stuck="before it claims its folder", by=("torchrun",)),
]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--launchers", nargs="+", choices=LAUNCHERS, default=list(LAUNCHERS))
    parser.add_argument("--faults", nargs="+", type=int, choices=range(len(CASES)), default=range(len(CASES)))
    parser.add_argument("--trainer", choices=("ddp_cpu", "fsdp_cpu"), default="ddp_cpu")
    parser.add_argument("--ranks", type=int, default=2, help="of the run; rank 1 is the last of them")
    parser.add_argument("--epochs", type=int, default=4, help="of the run that is broken")
    parser.add_argument("--step-timeout", type=float, default=10, help="seconds, as the run's setting")
    parser.add_argument("--startup-timeout", type=float, default=40, help="seconds, as the run's setting")


def run(options: argparse.Namespace) -> Iterator[Fault]:
    for launcher in options.launchers:
        with tempfile.TemporaryDirectory() as name:
            folder, lost = Path(name), {}
            for case in [CASES[i] for i in options.faults if launcher in CASES[i].by]:
                case = replace(case, rank=case.rank * (options.ranks - 1))
                job = Job(launcher, folder, options, case)
                try:
                    lost[case] = job.broken(case)
                finally:
                    job.end()
                if lost[case]:
                    print(job.log.read_text(), flush=True)
            job = Job(launcher, folder, options)
            try:
                finished = job.process.wait(4 * SECONDS) == 0 and result(folder)["status"] == "finished"
            finally:
                job.end()
            if not finished:
                print(job.log.read_text(), flush=True)
            for case in lost:
                yield Fault(f"{case.kind}, {launcher}", lost[case] or (None if finished else "the run's end"))


class Job:
    """The command, once more in the same folder, with all the processes that it starts."""

    def __init__(self, launcher: str, folder: Path, options: argparse.Namespace, case: Case | None = None) -> None:
        self.folder, self.mark, self.launcher = folder, uuid.uuid4().hex, launcher
        self.before = newest(folder)
        self.log = folder / f"{self.mark}.txt"
        self.stuck = folder / f"{self.mark}.stuck"
        stuck = [str(case.rank), STUCK[case.stuck], str(case.number), str(self.stuck)] if case and case.stuck else []
        environment = {
            **os.environ,
            "CHAOS": self.mark,
            "STUCK": " ".join(stuck),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        }
        settings = [f"trainer={options.trainer}", f"trainer.devices={options.ranks}", f"recipe.epochs={options.epochs}"]
        settings += [f"callbacks.hang_watchdog.step_timeout={options.step_timeout}"]
        settings += [f"callbacks.hang_watchdog.startup_timeout={options.startup_timeout}"]
        settings += [f"+data.loader.timeout={0.7 * options.step_timeout}"]
        command = [*(word.format(ranks=options.ranks) for word in LAUNCHERS[launcher]), *PROGRAM, *RUN, *settings]
        with self.log.open("w") as output:
            self.process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=output)

    def broken(self, case: Case) -> str | None:
        """Breaks the job once it has written a checkpoint; returns what was lost."""
        there = self.stuck.exists if case.stuck else self.trains
        if not until(there, 4 * SECONDS, self.alive):
            return "its start"
        if not case.stuck and self.before and "resumes after step" not in self.log.read_text():
            return "its place"
        all_of_it = marked(self.mark)
        rank = self.rank(case.rank)
        process = next(child for child in children(rank) if is_reader(child, rank)) if case.reader else rank
        if not case.stuck:
            os.kill(process, case.number)
        if not until(lambda: not self.alive() and not any(map(exists, all_of_it)), SECONDS):
            return f"its end, left are {[pid for pid in all_of_it if exists(pid)]}"
        if self.process.returncode == 0:
            return "its exit code"
        died = case.reader and case.number == signal.SIGKILL
        named = "a process that reads images died" if died else f"rank {case.rank} (process {rank} on "
        if not case.starts:
            named = f"rank {case.rank} did not come to "
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("error: ") and named in line]
        if len(lines) != 1:
            return f"its one line, found {len(lines)}"
        if not case.starts and case.rank == 0:
            return None  # it would write result.json
        left = result(self.folder)
        recorded = died or f"error: {left['error']}" == lines[0]
        return None if left["status"] == "failed" and recorded else f"result.json, {left['status']}: {left['error']}"

    def trains(self) -> bool:
        """Whether the job is some steps after its start and not at an epoch's end, where the longer timeout holds."""
        step = newest(self.folder)
        return step >= self.before + 5 and 5 <= step % STEPS < STEPS - 30

    def rank(self, number: int) -> int:
        """Returns a rank's process id."""
        if self.launcher == "lightning" and number == 0:
            return self.process.pid
        return next(pid for pid in children(self.process.pid) if setting(pid, "LOCAL_RANK") == str(number))

    def alive(self) -> bool:
        return self.process.poll() is None

    def end(self) -> None:
        for pid in marked(self.mark):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()


def result(folder: Path) -> dict:
    return json.loads((folder / "run" / "result.json").read_text())


def until(true: Callable[[], bool], seconds: float, goes_on: Callable[[], bool] = lambda: True) -> bool:
    """Whether `true()` became true within the time and while `goes_on()`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end and goes_on():
        if true():
            return True
        time.sleep(0.05)
    return true()


def marked(mark: str) -> list[int]:
    """Returns all processes that a job has started, itself or through others."""
    found = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
    return [pid for pid in found if setting(pid, "CHAOS") == mark]


def setting(pid: int, name: str) -> str | None:
    """Returns a variable of the environment with which a process was started."""
    try:
        lines = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    return next((line.decode().partition("=")[2] for line in lines if line.startswith(f"{name}=".encode())), None)


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task").glob("*/children")
    return [int(child) for path in tasks for child in path.read_text().split()]


def is_reader(child: int, rank: int) -> bool:
    """Whether a rank has forked this process, and not started it as a command."""
    command, own = (Path(f"/proc/{pid}/cmdline").read_bytes() for pid in (child, rank))
    return command == own and setting(child, "LOCAL_RANK") == setting(rank, "LOCAL_RANK")


def exists(pid: int) -> bool:
    """Whether the process exists, also as a zombie."""
    return Path(f"/proc/{pid}").exists()


def loop(_number: int, _frame: FrameType | None) -> None:
    """Loops for ever in the next step: a signal may come while a checkpoint is written, under the longer timeout."""

    def forever(*_: object) -> None:
        while True:
            pass

    Classifier.training_step = forever


def get_stuck(rank: str, where: str, number: str, path: str) -> None:
    """Replaces the function `where` in one rank by one that writes the file `path` and never returns."""
    owner, _, name = where.rpartition(".")
    module = pkgutil.resolve_name(owner)
    assert hasattr(module, name), f"{where} does not exist"

    def forever(*_: object, **__: object) -> None:
        Path(path).touch()
        while int(number) == LOOP:
            pass
        threading.Event().wait()

    if os.environ.get("LOCAL_RANK", "0") == rank:
        setattr(module, name, forever)


if __name__ == "__main__":
    import train
    from infvit.cli import entrypoint
    from infvit.run import ranks

    signal.signal(LOOP, loop)
    if stuck := os.environ.get("STUCK"):
        ranks.TIMEOUT = timedelta(seconds=20)  # of ranks that wait for rank zero's folder
        get_stuck(*stuck.split(" "))
    entrypoint.run(train.train)
