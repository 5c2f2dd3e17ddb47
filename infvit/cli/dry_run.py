"""The dry run: three real steps of a run, and an estimate of what the whole takes (`python train.py +dry_run=true`)."""

import itertools
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
from omegaconf import DictConfig

from infvit.cli.devices import check_batch
from infvit.measure.cost import Cost, cost
from infvit.measure.shape import shape
from infvit.measure.subprocess_case import peak_memory
from infvit.module import Classifier
from infvit.run.checkpoint import KEPT
from infvit.run.identity import recipe_hash
from infvit.tables.numbers import amount, duration, three_digits

STEPS = 3

LOADER_BATCHES = 8
"""Batches of one device with which the loader is timed alone."""

WITHOUT = ("hang_watchdog", "learning_rate", "checkpointing", "attention_maps", "progress")
"""Keys of conf/callbacks that write, show or watch; all other callbacks are part of a step."""


class StepTimer(Callback):
    """Times the first steps of a run, then stops it and measures the loader, the memory and a checkpoint.

    Attributes:
        steps: seconds of each step, on the slowest rank.
        loader_rate: images/s that all ranks read without training.
        memory: bytes, the largest peak of any process; `device_memory` is what torch reserved on the device (CUDA).
        checkpoint_size: bytes of a checkpoint, which is written into `folder` and removed.
        files_size: bytes of the files that the loaders read.
        batches: of one device in an epoch.
        side: pixels of the images in the steps.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.since = 0.0
        self.steps: list[float] = []
        self.loader_rate = 0.0
        self.memory = self.device_memory = self.checkpoint_size = self.files_size = self.batches = self.side = 0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now, self.side = time.perf_counter(), batch[0].shape[-1]
        if trainer.global_step > len(self.steps):  # the step is complete, with all its accumulated batches
            self.steps.append(now - self.since)
            self.since = now
        trainer.should_stop = trainer.global_step == STEPS

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        on_cuda = pl_module.device.type == "cuda"
        paths = [getattr(loader, "path", None) for loader in (trainer.train_dataloader, trainer.val_dataloaders)]
        self.files_size = sum(path.stat().st_size for path in paths if path)
        self.batches = int(trainer.num_training_batches)
        reserved = torch.cuda.max_memory_reserved() if on_cuda else 0
        own = [_seconds_per_image(trainer.train_dataloader), peak_memory(), reserved, *self.steps]
        own_values = torch.tensor(own, dtype=torch.float64, device=pl_module.device)
        largest = trainer.strategy.reduce(own_values, reduce_op="max").tolist()
        per_image, memory, device_memory, *self.steps = largest
        self.memory, self.device_memory = int(memory), int(device_memory)
        self.loader_rate = trainer.world_size / per_image
        with tempfile.TemporaryDirectory(dir=self.folder) as folder:
            path = Path(folder, "dry_run.ckpt")
            trainer.save_checkpoint(path)
            self.checkpoint_size = path.stat().st_size if trainer.is_global_zero else 0


def _seconds_per_image(loader: Any) -> float:
    """Seconds to read an image without training on it; the loader has been compiled and started before."""
    since = time.perf_counter()
    count = sum(len(batch[0]) for batch in itertools.islice(loader, LOADER_BATCHES))
    return (time.perf_counter() - since) / count


def estimate_run(cfg: DictConfig, data: Any, module: Classifier, folder: Path) -> None:
    """Runs the first steps and one batch of validation, and prints what the whole run takes.

    Leaves no result, checkpoint or log in the run's folder; files that the loaders prepare stay for the run.
    """
    callbacks = [instantiate(node) for key, node in cfg.callbacks.items() if node and key not in WITHOUT]
    for logger in cfg.logger.values():
        instantiate(logger)  # reports its errors; nothing is logged
    ramp, data.progressive = data.progressive, None  # a step takes longest at the full side
    timer = StepTimer(folder)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "limit_val_batches": 1}
    trainer = instantiate(cfg.trainer, callbacks=[*callbacks, timer], **quiet)
    check_batch(trainer, module, data)
    counted = cost(module.net, data.view.size)  # before the strategy shards the model, which then cannot be copied
    if trainer.is_global_zero:
        print(f"dry run: {STEPS} steps of the run; no result, checkpoint or log of them is kept", flush=True)
    trainer.fit(module, datamodule=data)
    if trainer.is_global_zero:
        for name, text in estimate(cfg, data, module, trainer, timer, counted, ramp):
            print(textwrap.fill(f"{name:<9}{text}", 80, subsequent_indent=" " * 9, break_on_hyphens=False))


def estimate(
    cfg: DictConfig,
    data: Any,
    module: Classifier,
    trainer: Trainer,
    timer: StepTimer,
    counted: Cost,
    ramp: Any,
) -> Iterator[tuple[str, str]]:
    """(name, text) of each line of the estimate; a line without a name continues the one above."""
    size, devices, accumulated = timer.side, trainer.world_size, trainer.accumulate_grad_batches
    on_cuda = module.device.type == "cuda"
    device = torch.cuda.get_device_name() if on_cuda else module.device.type.upper()
    steps, epochs = timer.batches // accumulated, int(trainer.max_epochs or 0)
    images = steps * data.batch_size
    flops, flops_training = counted.flops_forward, counted.flops_training
    first, *others = timer.steps
    step_rate = data.batch_size / statistics.fmean(others or timer.steps)
    passes = flops_training / flops if flops and flops_training else 3  # if unknown, backward is two forward passes
    validations = epochs // (trainer.check_val_every_n_epoch or 1)
    validation = validations * data.val_size / min(step_rate * passes, timer.loader_rate)
    seconds = epochs * images / min(step_rate, timer.loader_rate) + validation

    yield "model", f"{cfg.model.name}: {shape(module.net).depth or '?'} layers, {counted.parameters:,} parameters"
    forward = f"{amount(flops)} forward ({amount(counted.macs_forward)} MACs)"
    yield "FLOPs", f"{forward}, {amount(flops_training)} training, per image of {size} px"
    if flops_training is not None:
        yield "", f"{flops_training * epochs * images:.2g} in all of the training"
    yield "recipe", f"{cfg.recipe.name}#{recipe_hash(cfg.recipe)}: {epochs} epochs"
    batch = f"{accumulated} accumulated × " * (accumulated > 1) + f"{data.per_device(trainer):,}"
    yield "batch", f"{data.batch_size:,} = {devices} × {device} × {batch}, {trainer.precision}"
    yield "lr", f"{module.lr:.3g} ({module.base_lr:.3g} × {data.batch_size} / 512)"
    yield "data", f"{data.name}#{data.fingerprint}: {data.train_size:,} images, {data.num_classes:,} classes"
    yield "", f"{data.val_size:,} to validate with, {validations} times"
    yield "steps", f"{steps:,} an epoch, {steps * epochs:,} in all"
    yield "images", f"{images:,} an epoch, {images * epochs:,} in all"
    if data.repeats > 1:
        yield "", f"each epoch {images // data.repeats:,} different ones, {data.repeats} times each"
    if ramp is not None:
        share = f"{100 * ramp.pixels(size):.0f}%"
        yield "", f"from {ramp.start} to {size} px: {share} of the pixels that the time below is for"
    by = f"by steps of {' and '.join(map(three_digits, others))} s" if others else "by the only step"
    yield "speed", f"{three_digits(step_rate)} images/s {by}, after a first of {three_digits(first)} s"
    slower = "the bottleneck" if timer.loader_rate < step_rate else "not the bottleneck"
    yield "loader", f"{three_digits(timer.loader_rate)} images/s alone ({data.loader_name}): {slower}"
    yield "time", f"about {duration(seconds)}, {duration(validation)} of it for validation"
    yield "", f"{three_digits(seconds * devices / 3600)} device-hours, without the test at the end"
    total = torch.cuda.get_device_properties(module.device).total_memory if on_cuda else 0
    on_device = f"{amount(timer.device_memory)}B of {amount(total)}B on each device, " * on_cuda
    yield "memory", f"{on_device}{amount(timer.memory)}B in each process"
    kept = KEPT if cfg.callbacks.get("checkpointing") else 0
    files = f"{amount(timer.files_size)}B of .beton files, " * bool(timer.files_size)
    yield "disk", f"{files}{kept} checkpoint{'s' * (kept != 1)} of {amount(timer.checkpoint_size)}B"
    yield "", f"{amount(shutil.disk_usage(timer.folder).free)}B free"
