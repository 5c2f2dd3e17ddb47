"""A dry run: three real steps of a run, and from them what all of it will take. `python train.py ... +dry_run=true`."""

import shutil
import statistics
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor, ProgressBar
from omegaconf import DictConfig

from callbacks.attention_maps import AttentionMaps
from callbacks.checkpointing import PeriodicCheckpoint
from callbacks.hang_watchdog import HangWatchdog
from callbacks.run_record import recipe_hash
from data.datamodule import ImageDataModule
from data.progressive import Ramp
from infvit.cli.devices import check_batch
from infvit.compare.render import amount, duration
from infvit.measure.cost import Cost, cost
from infvit.measure.shape import shape
from infvit.measure.subprocess_case import peak_memory
from infvit.module import Classifier
from infvit.run.checkpoint import KEPT

STEPS = 3
BATCHES = 8
"""Batches of a device that the loader is timed with, when nothing else waits for it."""

LEAVES = (PeriodicCheckpoint, HangWatchdog, LearningRateMonitor, ProgressBar, AttentionMaps)
"""What a run has to leave or show something, and to be watched; all other callbacks belong to the step."""

WIDTH = 80


class Rehearsal(Callback):
    """Stops the run after `STEPS` steps, timing each, and weighs what it holds and would keep.

    Attributes:
        steps: seconds of each step, in the slowest process.
        loaded: images/s that all processes read when they do nothing else.
        memory: bytes that the largest process has held; on CUDA `device_memory` is what torch took of the device.
        checkpoint: bytes of a checkpoint, written into `folder` and removed.
        written: bytes of the files that the loaders read.
        batches: of one device in an epoch.
        side: pixels of the images of the steps.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = [0.0]
        self.since = 0.0
        self.steps: list[float] = []
        self.loaded = 0.0
        self.memory = self.device_memory = self.checkpoint = self.written = self.batches = self.side = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now, self.side = time.perf_counter(), batch[0].shape[-1]
        self.seconds[-1] += now - self.since
        self.since = now
        if trainer.global_step == len(self.seconds):  # not in the middle of accumulated batches
            self.seconds.append(0.0)
        if trainer.global_step == STEPS:
            trainer.should_stop = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        memory = float(peak_memory())
        device_memory = float(torch.cuda.max_memory_reserved()) if pl_module.device.type == "cuda" else 0.0
        files = [getattr(loader, "path", None) for loader in (trainer.train_dataloader, trainer.val_dataloaders)]
        self.written = sum(path.stat().st_size for path in files if path)
        self.batches = int(trainer.num_training_batches)
        an_image, steps = _seconds_an_image(trainer.train_dataloader), self.seconds[: trainer.global_step]
        mine = torch.tensor([an_image, memory, device_memory, *steps], dtype=torch.float64, device=pl_module.device)
        an_image, memory, device_memory, *self.steps = trainer.strategy.reduce(mine, reduce_op="max").tolist()
        self.loaded, self.memory, self.device_memory = trainer.world_size / an_image, int(memory), int(device_memory)
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder, "weighed.ckpt")
            trainer.save_checkpoint(path)
            self.checkpoint = path.stat().st_size if trainer.is_global_zero else 0


def rehearse(cfg: DictConfig, data: ImageDataModule, module: Classifier, folder: Path) -> None:
    """Composes the run, does its first steps and one batch of its validation, and prints what the whole will take.

    Leaves neither results nor checkpoints nor logs in the run's folder; the loader's files stay for the run.
    """
    callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    for logger in cfg.logger.values():
        instantiate(logger)  # what is wrong with it shows here; it is not asked to log anything
    ramp, data.progressive = data.progressive, None  # at the full side a step takes most
    rehearsal = Rehearsal(folder)
    trainer = instantiate(
        cfg.trainer,
        callbacks=[*(callback for callback in callbacks if not isinstance(callback, LEAVES)), rehearsal],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        limit_val_batches=1,
    )
    check_batch(trainer, module, data)
    counted = cost(module.net, data.view.size)  # now: sharded, it cannot be copied
    if trainer.is_global_zero:
        print(f"dry run: {STEPS} steps of the run, of which no result, checkpoint or log is kept", flush=True)
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        kept = KEPT * sum(isinstance(callback, PeriodicCheckpoint) for callback in callbacks)
        for name, text in rows(cfg, data, module, trainer, rehearsal, counted, kept, ramp):
            print(textwrap.fill(f"{name:<9}{text}", WIDTH, subsequent_indent=" " * 9, break_on_hyphens=False))


def rows(
    cfg: DictConfig,
    data: ImageDataModule,
    module: Classifier,
    trainer: Trainer,
    done: Rehearsal,
    counted: Cost,
    kept: int,
    ramp: Ramp | None,
) -> Iterator[tuple[str, str]]:
    """What a person wants to know of the run, each with its name."""
    size, devices, parts = done.side, trainer.world_size, trainer.accumulate_grad_batches
    steps, epochs = done.batches // parts, int(trainer.max_epochs or 0)
    images = steps * data.batch_size
    first, *timed = done.steps
    trained = data.batch_size / statistics.fmean(timed or done.steps)
    rate = min(trained, done.loaded)
    flops, flops_trained = counted.flops_forward, counted.flops_training
    both_passes = flops_trained / flops if flops and flops_trained else 3  # uncounted, backward is two of forward
    validated = min(trained * both_passes, done.loaded)
    validations = epochs // (trainer.check_val_every_n_epoch or 1)
    validation = validations * data.val_size / validated
    seconds = epochs * images / rate + validation
    accumulated = f"{parts} accumulated × " if parts > 1 else ""
    on_cuda = module.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_cuda else module.device.type.upper()

    yield "model", f"{cfg.model.name}: {shape(module.net).depth or '?'} layers, {counted.parameters:,} parameters"
    forward = f"{amount(flops)} forward ({amount(counted.macs_forward)} MACs)"
    yield "FLOPs", f"{forward}, {amount(flops_trained)} training, per image of {size} px"
    if flops_trained is not None:
        yield "", f"{flops_trained * epochs * images:.2g} in all of the training"
    yield "recipe", f"{cfg.recipe.name}#{recipe_hash(cfg.recipe)}: {epochs} epochs"
    yield (
        "batch",
        f"{data.batch_size:,} = {devices} × {device} × {accumulated}{data.per_device(trainer):,}, {trainer.precision}",
    )
    yield "lr", f"{module.lr:.3g} ({module.base_lr:.3g} × {data.batch_size} / 512)"
    yield "data", f"{data.name}#{data.fingerprint}: {data.train_size:,} images, {data.num_classes:,} classes"
    yield "", f"{data.val_size:,} to validate with, {validations} times"
    yield "steps", f"{steps:,} an epoch, {steps * epochs:,} in all"
    yield "images", f"{images:,} an epoch, {images * epochs:,} in all"
    if data.repeats > 1:
        yield "", f"each epoch {images // data.repeats:,} different ones, {data.repeats} times each"
    if ramp is not None:
        share = f"{100 * ramp.pixels(size):.0f}%"
        yield "", f"from {ramp.start} to {size} px: {share} of the pixels that the time is for"
    by = f"by steps of {' and '.join(map(_three, timed))} s" if timed else "by the one step that there is"
    yield "speed", f"{_three(trained)} images/s {by}, behind a first of {_three(first)} s"
    slower = "the bottleneck" if done.loaded < trained else "no bottleneck"
    yield "loader", f"{_three(done.loaded)} images/s alone ({data.loader_name}): {slower}"
    yield "time", f"about {duration(seconds)}, {duration(validation)} of it for validation"
    yield "", f"{_three(seconds * devices / 3600)} device-hours, without the test at the end"
    has = torch.cuda.get_device_properties(module.device).total_memory if on_cuda else 0
    on_device = f"{amount(done.device_memory)}B of {amount(has)}B on each device, " if on_cuda else ""
    yield "memory", f"{on_device}{amount(done.memory)}B in each process"
    files = f"{amount(done.written)}B of .beton files, " if done.written else ""
    checkpoints = f"{kept} checkpoint{'s' * (kept != 1)}"
    yield "disk", f"{files}{checkpoints} of {amount(done.checkpoint)}B"
    yield "", f"{amount(shutil.disk_usage(done.folder).free)}B free"


def _three(value: float) -> str:
    """Three digits, or all in front of the point."""
    return f"{value:,.0f}" if value >= 99.95 else f"{value:.3g}"


def _seconds_an_image(loader: Any) -> float:
    """What one image takes to read, when the batches are not used; the loader has compiled and started by now."""
    count, since = 0, time.perf_counter()
    for done, batch in enumerate(loader, 1):
        count += len(batch[0])
        if done == BATCHES:
            break
    return (time.perf_counter() - since) / count
