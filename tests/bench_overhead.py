"""The overhead of train.py, with its callbacks, loggers and progress bar, over a bare PyTorch loop.

    python -m tests.bench_overhead [--epochs 9] [overrides of train.py; default experiment=digits]

Both have the model, loader, augmentation, optimizer and schedule that the same configuration makes, and train and
validate epoch by epoch. They are two processes that take turns, an epoch each, so that drift hits both alike. A ratio
is of one turn of both; the first, in which things are compiled and allocated, is left out. Two ratios are printed: of
the epoch's training steps alone, and of the whole epoch with its validation, checkpoint, logs and files.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import Precision
from torch.nn import functional as F

import train
from infvit.cli import entrypoint
from infvit.measure.efficiency.timing import ratio

ROOT = Path(__file__).parents[1]
BARE, FRAMED = "a bare loop", "train.py"


class Turns(Callback):
    """Makes train.py take turns: an epoch begins on a message, and ends after its validation, logs and files.

    Sends a message at the end of the first step, of each epoch's steps and of each epoch.
    """

    turns: Connection

    def on_train_epoch_start(self, trainer: Trainer, *_: Any) -> None:
        """Also ends the epoch before: some of its logs and files are written after the hooks at its end."""
        if trainer.current_epoch:
            self.turns.send(None)
        self.turns.recv()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            self.turns.send(None)

    def on_validation_start(self, *_: Any) -> None:
        self.turns.send(None)

    def on_train_end(self, *_: Any) -> None:
        self.turns.send(None)
        self.turns.recv()


def framed(overrides: list[str], turns: Connection, log: Path) -> None:
    """train.py, whose progress bar is drawn into a file as into a terminal."""
    from tests.bench_overhead import Turns as Imported  # by Hydra, while this module is the main one

    Imported.turns = turns
    os.environ["FORCE_COLOR"] = "1"
    printed = os.open(log, os.O_CREAT | os.O_WRONLY)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    sys.argv = ["train.py", *overrides, "+callbacks.turns={_target_: tests.bench_overhead.Turns}"]
    entrypoint.run(train.train)


def bare_loop(overrides: list[str], turns: Connection, _: Path) -> None:
    """A plain training loop with the same parts."""
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        cfg = compose("train", [*overrides, "hydra.runtime.output_dir=."], return_hydra_config=True)
    HydraConfig.instance().set_config(cfg)
    data, module = train.build(cfg)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    one = SimpleNamespace(global_rank=0, world_size=1, accumulate_grad_batches=1, testing=False, training=True)
    one.strategy, one.precision_plugin = SimpleNamespace(root_device=device), Precision()
    data.trainer = one  # type: ignore[assignment]
    data.prepare_data()
    net = module.net.to(device)
    optimizer = module.make_optimizer(net, lr=module.lr)
    batches, validation = data.train_dataloader(), data.val_dataloader()
    steps = data.train_size // data.batch_size
    schedule = module.make_schedule(optimizer, module.warmup_epochs * steps, module.epochs * steps)
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=cfg.trainer.precision == "bf16-mixed")

    def seen(batch: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        moved = tuple(part.to(device, non_blocking=True) for part in batch)
        return data.on_after_batch_transfer(moved, 0)

    for _ in range(cfg.trainer.max_epochs):
        turns.recv()
        net.train()
        one.training = True
        for batch in batches:
            images, targets = seen(batch)
            if module.mixup is not None:
                images, targets = module.mixup(images, targets)
            with mixed:
                loss = F.cross_entropy(net(images), targets, label_smoothing=module.label_smoothing)
            optimizer.zero_grad()
            loss.backward()
            if cfg.trainer.gradient_clip_val:
                torch.nn.utils.clip_grad_norm_(net.parameters(), cfg.trainer.gradient_clip_val)
            optimizer.step()
            schedule.step()
        turns.send(None)
        net.eval()
        one.training, right = False, 0
        with torch.inference_mode(), mixed:
            for batch in validation:
                images, labels = seen(batch)
                right += int((net(images).argmax(1) == labels).sum())
        turns.send(None)
    turns.recv()


def race(overrides: list[str], epochs: int, folder: Path) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """Seconds of (steps, epoch) by epoch without the first, and seconds of train.py to the end of its first step."""
    overrides = [*overrides, f"recipe.epochs={epochs}", "recipe.warmup_epochs=0", f"hydra.run.dir={folder}/run"]
    turns, processes, context = {}, [], multiprocessing.get_context("spawn")

    def start(name: str, work: Callable[..., None]) -> Connection:
        turns[name], theirs = context.Pipe()
        processes.append(context.Process(target=work, args=(overrides, theirs, folder / "log")))
        processes[-1].start()
        theirs.close()  # the process has it: when it ends, this one gets an EOFError
        return turns[name]

    def turn(name: str) -> tuple[float, float]:
        ours, since = turns[name], time.perf_counter()
        ours.send(None)
        ours.recv()
        steps = time.perf_counter() - since
        ours.recv()
        return steps, time.perf_counter() - since

    try:
        since = time.perf_counter()
        first = start(FRAMED, framed)
        first.send(None)
        first.recv()
        to_first_step = time.perf_counter() - since
        for _ in range(2):
            first.recv()
        start(BARE, bare_loop)
        turn(BARE)
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
        for _ in range(1, epochs):
            for name in turns:
                seconds[name].append(turn(name))
        for ours in turns.values():
            ours.send(None)
        for process in processes:
            process.join()
    except EOFError:
        sys.exit(f"one of the two ended early: {(folder / 'log').read_text(errors='replace')}")
    finally:
        for process in processes:
            process.kill()
    return seconds, to_first_step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=9)
    arguments, overrides = parser.parse_known_args()
    overrides = overrides or ["experiment=digits"]
    with tempfile.TemporaryDirectory() as folder:
        seconds, to_first_step = race(overrides, arguments.epochs, Path(folder))
    print(f"{' '.join(overrides)}: {arguments.epochs - 1} epochs")
    for at, part in enumerate(("training steps", "whole epochs")):
        bare, framed = ([both[at] for both in seconds[name]] for name in (BARE, FRAMED))
        speed = ratio(bare, framed)
        print(
            f"{part}: {BARE} {statistics.median(bare):.3f} s, {FRAMED} {statistics.median(framed):.3f} s;"
            f" {FRAMED} has {100 * speed.median:.1f}% ({100 * speed.low:.1f} – {100 * speed.high:.1f}) of its speed"
        )
    print(f"train.py ends its first step {to_first_step:.1f} s after its start")


if __name__ == "__main__":
    main()
