"""Attention maps of a few validation images, during training and at its end."""

import io
import math
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor, nn

from infvit.compare.page import ATTENTION_PICTURE
from infvit.errors import UsageError, expect
from infvit.measure.attention.blocks import backbone
from infvit.measure.attention.health import Health, health
from infvit.measure.attention.heat import draw_sheet
from infvit.measure.attention.maps import layer_maps
from infvit.run.files import atomic_write, print_line, tolerate_write_errors
from infvit.sharding import unsharded

IMAGES = 8
ROWS = 4
"""Blocks that a picture during training shows at most, evenly spaced and including the last one."""

MAX_WEIGHTS = 2**28
"""Attention weights of one image that are held at a time, one gigabyte: a picture must not cost a run its memory."""

MAX_WEIGHTS_FOR_SPECTRA = 2**22
"""Attention weights up to which singular values and eigenvectors take seconds; health leaves them out above it."""


class AttentionMaps(Callback):
    """Draws and logs how the blocks weigh the patches of a few images (`infvit.measure.attention`).

    Every `every_n_epochs` epochs and at the end of training it writes `maps/epoch_0005.png` into the run's folder, the
    images above their maps in some of the blocks, and logs it to W&B as `maps`. All loggers receive each block's
    health as a mean over heads and images, such as `dead_heads/block` and `effective_tokens/block` (see `Health`).
    At the end it also writes `attention.png`, the last block's maps alone, and logs it to W&B as `attention`.

    Only rank zero computes them, and no rank waits for it. If a model has no maps, or anything fails, one line reports
    why and the run continues.

    Args:
        folder: of the run.
        every_n_epochs: 0 for the end of training alone.
    """

    def __init__(self, folder: str, every_n_epochs: int) -> None:
        expect(every_n_epochs >= 0, f"callbacks.attention_maps.every_n_epochs={every_n_epochs}", "1 or more, or 0")
        self.folder, self.every_n_epochs = Path(folder), every_n_epochs
        self.images: Tensor | None = None
        self.reported: set[str] = set()
        self.unwritten: dict[str, str] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch + 1
        if self.every_n_epochs and epochs % self.every_n_epochs == 0 and epochs != trainer.max_epochs:
            self._draw(trainer, pl_module, epochs)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model holds the weights that are tested: the callback that averages weights precedes this one."""
        self._draw(trainer, pl_module, trainer.current_epoch, at_end=True)

    def _draw(self, trainer: Trainer, module: LightningModule, epochs: int, at_end: bool = False) -> None:
        with unsharded(cast(nn.Module, module.net)):
            if not trainer.is_global_zero:
                return
            try:
                self._draw_maps(trainer, module, epochs, at_end)
            except Exception as error:
                reason = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
                if reason not in self.reported:
                    self.reported.add(reason)
                    print_line(f"no attention picture of {self.folder.name}: {' '.join(reason.split())}")

    def _draw_maps(self, trainer: Trainer, module: LightningModule, epochs: int, at_end: bool) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        if self.images is None:
            self.images = data.examples(IMAGES)
        maps, found = _maps_and_health(module, data.normalised(self.images.to(module.device)))
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": epochs - 1, **_health_by_block(found)}, trainer.global_step)
        shown = torch.linspace(0, len(maps) - 1, min(len(maps), ROWS)).round().long()
        pictures = {f"maps/epoch_{epochs:04d}.png": maps[shown]}
        if at_end:
            pictures[ATTENTION_PICTURE] = maps[-1:]
        for name, rows in pictures.items():
            path, content = self.folder / name, io.BytesIO()
            draw_sheet(self.images, *rows).save(content, "png", optimize=True)
            with tolerate_write_errors(name, "the run continues without it", self.unwritten):
                path.parent.mkdir(exist_ok=True)
                atomic_write(path, content.getvalue())
            for logger in trainer.loggers if path.is_file() else []:
                if isinstance(logger, WandbLogger):
                    logger.log_image(name.split("/")[0].removesuffix(".png"), [str(path)], trainer.global_step)


def _maps_and_health(module: LightningModule, images: Tensor) -> tuple[Tensor, Health]:
    """The maps of every block, (depth, B, h, w) on the CPU, and their health."""
    net: Any = module.net
    images = images.to(next(net.parameters()).dtype)
    found = backbone(net)
    rows, columns = found.grid(*images.shape[-2:])
    tokens = rows * columns + found.prefix
    weights = max((o.heads * tokens**2 for o in found.operators if o.weighs == "matrix"), default=0)
    if weights > MAX_WEIGHTS:
        raise UsageError(f"the weights of {tokens:,} tokens would take {weights * 4 / 1e9:,.1f} GB")
    heads = max(o.heads for o in found.operators)
    at_a_time = max(MAX_WEIGHTS // (heads * tokens**2), 1)
    training = net.training
    net.eval()
    try:
        maps = torch.cat([layer_maps(net, part, "attention") for part in images.split(at_a_time)], 1).cpu()
        if not maps.isfinite().all():
            raise UsageError("the weights are not finite")
        return maps, health(net, images, spectra=heads * tokens**2 <= MAX_WEIGHTS_FOR_SPECTRA)
    finally:
        net.train(training)


def _health_by_block(found: Health) -> dict[str, float]:
    """The finite means over heads and images as "dead_heads/block", without gamma, which `TrainingStats` logs."""
    named = {"dead_heads" if name == "off" else name: means for name, means in found.summary().items()}
    named.pop("gamma", None)
    blocks = {f"{name}/{i}": float(mean.nanmean()) for name, means in named.items() for i, mean in enumerate(means)}
    return {name: value for name, value in blocks.items() if math.isfinite(value)}
