"""What a model looks at, while it trains and at the end: a few validation images, the same for every run, with maps."""

import math
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor, nn

from callbacks.loggers import OfflineFallbackWandbLogger
from data.datamodule import ImageDataModule
from infvit.compare.page import ATTENTION_PICTURE
from infvit.errors import UsageError
from infvit.measure.attention.blocks import backbone
from infvit.measure.attention.health import Health, health
from infvit.measure.attention.heat import over, picture
from infvit.measure.attention.maps import layer_maps
from infvit.run.files import print_line, tolerate_write_errors
from infvit.sharding import whole

IMAGES = 8
ROWS = 4
"""Blocks that a picture during training shows at most, evenly spread, the last one among them."""

SIDES = 96, 144
"""Pixels of an image in the picture: smaller ones are enlarged to 96 at least, larger ones shrunk to 144."""

GAP = 4
MOST_WEIGHTS = 2**28
"""Numbers that the weights of one image may hold, a gigabyte: a picture must not cost a run its memory."""

MOST_FOR_SPECTRA = 2**22
"""As many up to which singular values and eigenvectors take seconds; of more, health is measured without them."""


class AttentionMaps(Callback):
    """Shows and logs what the blocks weigh the patches of a few images with (`infvit.measure.attention`).

    Every `every_n_epochs` epochs and at the end of training it writes `maps/epoch_0005.png` into the run's folder, the
    images above their maps by some of the blocks, and logs it to W&B as `maps`; and logs to all loggers the means over
    heads and images of each block's health, such as `dead_heads/block` and `effective_tokens/block` (`Health` names
    them). At the end it also writes `attention.png`, the last block's maps alone, and logs it to W&B as `attention`.

    Only the first process looks, and waits for no other. Where there are no maps, or anything goes wrong, one line
    says why and the run goes on.

    Args:
        folder: of the run.
        every_n_epochs: 0 for the end of training alone.
    """

    def __init__(self, folder: str, every_n_epochs: int) -> None:
        if every_n_epochs < 0:
            raise UsageError(f"every_n_epochs={every_n_epochs} is no number of epochs: expected 0 (at the end) or more")
        self.folder, self.every_n_epochs = Path(folder), every_n_epochs
        self.images: Tensor | None = None
        self.reported: set[str] = set()
        self.unwritten: dict[str, str] = {}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        finished = trainer.current_epoch + 1
        if self.every_n_epochs and finished % self.every_n_epochs == 0 and finished != trainer.max_epochs:
            self._look(trainer, pl_module, finished)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At this point, after the callback that averages weights, the weights are those that are tested."""
        self._look(trainer, pl_module, trainer.current_epoch, at_end=True)

    def _look(self, trainer: Trainer, module: LightningModule, finished: int, at_end: bool = False) -> None:
        with whole(cast(nn.Module, module.net)):
            if trainer.is_global_zero:
                self._look_alone(trainer, module, finished, at_end)

    def _look_alone(self, trainer: Trainer, module: LightningModule, finished: int, at_end: bool) -> None:
        try:
            data: ImageDataModule = trainer.datamodule  # type: ignore[attr-defined]
            if self.images is None:
                self.images = data.examples(IMAGES)
            maps, found = _looked(module, data.normalised(self.images.to(module.device)))
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": finished - 1, **_per_block(found)}, trainer.global_step)
            shown = torch.linspace(0, len(maps) - 1, min(len(maps), ROWS)).round().long()
            pictures = {f"maps/epoch_{finished:04d}.png": maps[shown]}
            if at_end:
                pictures[ATTENTION_PICTURE] = maps[-1:]
            for name, rows in pictures.items():
                path = self.folder / name
                sheet = drawn(self.images, *rows)
                with tolerate_write_errors(name, "the run continues without it", self.unwritten):
                    path.parent.mkdir(exist_ok=True)
                    _saved(sheet, path)
                for logger in trainer.loggers if path.is_file() else []:
                    if isinstance(logger, OfflineFallbackWandbLogger):
                        logger.log_image(name.split("/")[0].removesuffix(".png"), path, trainer.global_step)
        except Exception as error:
            reason = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            if reason not in self.reported:
                self.reported.add(reason)
                print_line(f"no attention picture of {self.folder.name}: {' '.join(reason.split())}")


def _saved(sheet: Image.Image, path: Path) -> None:
    """The file whole or not at all."""
    beside = path.with_name(f".{path.name}")
    try:
        sheet.save(beside, path.suffix[1:], optimize=True)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def _looked(module: LightningModule, images: Tensor) -> tuple[Tensor, Health]:
    """The maps of every block, (depth, B, h, w) on the CPU, and their health."""
    net: Any = module.net
    images = images.to(next(net.parameters()).dtype)
    found = backbone(net)
    rows, columns = found.grid(*images.shape[-2:])
    tokens = rows * columns + found.prefix
    matrices = max((o.heads * tokens**2 for o in found.operators if o.weighs == "matrix"), default=0)
    if matrices > MOST_WEIGHTS:
        raise UsageError(f"the weights of {tokens:,} tokens would take {matrices * 4 / 1e9:,.1f} GB")
    heads = max(o.heads for o in found.operators)
    at_a_time = max(MOST_WEIGHTS // (heads * tokens**2), 1)
    training = net.training
    net.eval()
    try:
        maps = torch.cat([layer_maps(net, part, "attention") for part in images.split(at_a_time)], 1).cpu()
        if not maps.isfinite().all():
            raise UsageError("the weights are not finite")
        return maps, health(net, images, spectra=heads * tokens**2 <= MOST_FOR_SPECTRA)
    finally:
        net.train(training)


def _per_block(found: Health) -> dict[str, float]:
    """The finite means over heads and images as "dead_heads/block", except gamma, which `TrainingStats` logs."""
    named = {"dead_heads" if name == "off" else name: means for name, (means, _) in found.summary().items()}
    named.pop("gamma", None)
    blocks = {f"{name}/{i}": float(mean.nanmean()) for name, means in named.items() for i, mean in enumerate(means)}
    return {name: value for name, value in blocks.items() if math.isfinite(value)}


def drawn(images: Tensor, *maps: Tensor) -> Image.Image:
    """The images in a row and below, for each of the maps, the same under it, brightest where it is largest.

    Args:
        images: uint8 (B, 3, s, s).
        maps: each (B, h, w), nonnegative.
    """
    size = images.shape[-1]
    side = min(size * -(-SIDES[0] // size), SIDES[1])
    sheet = Image.new("RGB", (len(images) * (side + GAP) - GAP, (len(maps) + 1) * (side + GAP) - GAP), "white")
    how = Image.Resampling.NEAREST if side % size == 0 else Image.Resampling.LANCZOS
    for i, image in enumerate(images):
        top = picture(image).resize((side, side), how)
        sheet.paste(top, (i * (side + GAP), 0))
        for row, weights in enumerate((of_all[i] for of_all in maps), start=1):
            sheet.paste(over(top, weights), (i * (side + GAP), row * (side + GAP)))
    return sheet.quantize(128)  # a third of the bytes, and no difference that one sees
