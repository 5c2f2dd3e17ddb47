"""`kill -9` at random moments of a run, and at chosen moments while a checkpoint is written; then the run resumes.

In the end weights, optimizer, averaged weights, curves, metrics and the CSV log equal those of an uninterrupted run,
bit by bit. Each run is a process forked from this one, which has imported everything.
"""

import argparse
import csv
import io
import itertools
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import train
from callbacks.epoch_seed import EpochSeed
from infvit.cli import entrypoint
from infvit.run import checkpoint
from tests.chaos import Fault

RUN = [
    "experiment=digits",
    "data/loader=torch",
    "logger=csv",
    "size.depth=2",
    "size.dim=32",
    "recipe.epochs=3",
    "recipe.warmup_epochs=1",
    "recipe.ema={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.9}",
    "recipe.mixup={_target_: timm.data.Mixup, _partial_: true, mixup_alpha: 0.8, label_smoothing: 0.0}",
    "recipe.model.drop_path=0.2",
    "trainer.log_every_n_steps=3",
    "checkpoint.every_minutes=0.003",
    "hydra.run.dir=run",
    "resume=auto",
]

CLOCKS = {"images_per_second"}
"""Columns that depend on the clock."""

WRITING = ("write", "fsync", "rename", "symlink_to")
"""Where a process kills itself: after some bytes, before the sync to disk, before the renaming, before the link."""
RANDOM = "kill -9 at a random moment"
THEN_AHEAD = {
    signal.SIGKILL: "kill -9, and a clock that went back",
    signal.SIGINT: "Ctrl-C, and a clock that went back",
}
"""Signals that a process sends itself after some steps; then the times of its checkpoints are two hours ahead."""


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--times", type=int, default=20, help="kills at random moments")
    parser.add_argument("--writing", type=int, default=len(WRITING), help="moments while a checkpoint is written")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments")


def run(options: argparse.Namespace) -> Iterator[Fault]:
    draws = random.Random(options.seed)
    os.environ["WANDB_MODE"] = "offline"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        since = time.monotonic()
        finish(start(folder / "reference"))
        seconds = time.monotonic() - since
        reference = left(folder / "reference" / "run")
        kills = 0
        while kills < options.times:
            trial = folder / f"kill{kills}"
            begun: list[int] = []
            while kills + len(begun) < options.times and kill_after(start(trial), draws.uniform(0, seconds)):
                begun.append(newest(trial))
            finish(start(trial))
            lost = difference(reference, left(trial / "run"))
            for step in begun:
                yield Fault(RANDOM, lost or forgotten(trial, step))
            kills += len(begun)
        for place in WRITING[: options.writing]:
            trial = folder / place
            _, status = os.waitpid(start(trial, in_writing(place, draws.randint(2, 5))), 0)
            killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
            step = newest(trial)
            finish(start(trial))
            lost = difference(reference, left(trial / "run")) if killed else "the kill"
            yield Fault(f"kill -9 in a checkpoint's {place}", lost or forgotten(trial, step))
        for number, kind in THEN_AHEAD.items():
            trial = folder / number.name
            _, status = os.waitpid(start(trial, after_steps({20: lambda n=number: os.kill(os.getpid(), n)})), 0)
            code, step, ahead = os.waitstatus_to_exitcode(status), newest(trial), time.time() + 7200
            lines = (trial / "output.txt").read_text().count("SIGINT after step 20 ")
            ended = (code, lines) == ((130, 1) if number == signal.SIGINT else (-number, 0))
            for path in trial.glob("run/checkpoints/step*"):
                os.utime(path, (ahead, ahead))
            finish(start(trial))
            lost = difference(reference, left(trial / "run")) if ended else f"its end, exit code {code}, lines {lines}"
            yield Fault(kind, lost or forgotten(trial, step))


def start(
    folder: Path, first: Callable[[], None] = lambda: None, words: Sequence[str] = RUN, output: str = "output.txt"
) -> int:
    """Starts a training in `folder` after calling `first`, appends to `output`, and returns the process id."""
    folder.mkdir(parents=True, exist_ok=True)
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        os.chdir(folder)
        log = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        first()
        sys.argv = ["train.py", *words]
        entrypoint.run(train.train)
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def finish(process: int) -> None:
    _, status = os.waitpid(process, 0)
    if status:
        raise RuntimeError(f"the run that should have finished ended with status {status}: see output.txt")


def kill_after(process: int, seconds: float) -> bool:
    """Kills the process after that time; False if it has ended by itself before."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    return True


def newest(trial: Path) -> int:
    """The step of the newest checkpoint, 0 if there is none."""
    found = checkpoint.newest_first(trial / "run" / "checkpoints")
    named = checkpoint.NAME.fullmatch(found[0].name) if found else None
    return int(named[1]) if named else 0


def forgotten(trial: Path, step: int) -> str | None:
    """The step of the checkpoint if the run did not resume from it: it would end equal, too, but train twice."""
    output = (trial / "output.txt").read_text()
    resumed = f"resumes after step {step}, " in output or "is finished; delete" in output  # killed after its end
    return f"step {step}" if step and not resumed else None


def in_writing(place: str, count: int) -> Callable[[], None]:
    """Returns what makes a process kill itself at this place while it writes its `count`-th checkpoint."""
    owner, name = {"write": (torch, "save"), "fsync": (os, "fsync")}.get(place, (Path, place))
    real, seen = getattr(owner, name), 0

    def fatal(*args: Any) -> Any:
        nonlocal seen
        ours = owner is not Path or str(args[0]).endswith(".part")
        seen += ours
        if seen >= count and ours:
            if place == "write":
                content = io.BytesIO()
                real(args[0], content)
                args[1].write(content.getvalue()[:20_000])
                args[1].flush()
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args)

    return lambda: setattr(owner, name, fatal)


def after_steps(acts: dict[float, Callable[[], None]]) -> Callable[[], None]:
    """Returns what makes a process call these functions after steps of its training, counted from 1."""
    real, steps = EpochSeed.on_train_batch_end, itertools.count(1)

    def then(*arguments: Any) -> None:
        acts.get(next(steps), lambda: None)()
        real(*arguments)

    return lambda: setattr(EpochSeed, "on_train_batch_end", then)


def left(run: Path) -> dict[str, Any]:
    """Everything that must not depend on interruptions."""
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    result = json.loads((run / "result.json").read_text())
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    return {
        "weights": content["state_dict"],
        "trained weights": content["current_model_state"],
        "optimizer": content["optimizer_states"],
        "schedule": content["lr_schedulers"],
        "status": result["status"],
        "metrics": result["metrics"],
        "curves": result["curves"],
        "CSV log": [{name: text for name, text in row.items() if name not in CLOCKS and text} for row in rows],
    }


def difference(ours: dict[str, Any], theirs: dict[str, Any]) -> str | None:
    """The names of what differs."""
    return ", ".join(name for name in ours if not same(ours[name], theirs[name])) or None


def same(a: Any, b: Any) -> bool:
    """Whether both are equal, tensors bit by bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[name], b[name]) for name in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b
