"""What a trained model looks at: a few validation images, the same for every run, each with its attention map."""

from pathlib import Path

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from PIL import Image
from torch import Tensor

from data.datamodule import ImageDataModule
from infvit.attention import Attention, HydraAttention, LinearInfSA
from infvit.compare.page import ATTENTION_PICTURE
from infvit.errors import UsageError
from infvit.measure.attention.maps import token_map
from infvit.vit import VisionTransformer

IMAGES = 8
SIDES = 96, 144
"""Pixels of an image in the picture: smaller ones are enlarged to 96 at least, larger ones shrunk to 144."""

GAP = 4
MOST_WEIGHTS = 2**28
"""Numbers that the weights of one image may hold, a gigabyte: a picture must not cost a run its memory."""

HEAT = np.array([[0, 0, 4], [87, 16, 110], [188, 55, 84], [249, 142, 9], [252, 255, 164]], dtype=np.float32)
"""Colours from nothing to the largest weight, with rising lightness (matplotlib's inferno at five places)."""


class AttentionPictures(Callback):
    """At the end of training writes `attention.png` into the run's folder and logs it to W&B as `attention`.

    The maps are the last block's (`infvit.measure.attention.maps`). Where there are none, or anything goes wrong, one
    line says why and the run goes on.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """At this point, after the callback that averages weights, the weights are those that are tested."""
        if not trainer.is_global_zero:
            return
        try:
            path = self.folder / ATTENTION_PICTURE
            _picture(pl_module, trainer.datamodule).save(path, optimize=True)  # type: ignore[attr-defined]
            for logger in trainer.loggers:
                if isinstance(logger, WandbLogger):
                    logger.log_image(path.stem, [str(path)])
        except Exception as error:
            reason = str(error) if isinstance(error, UsageError) else f"{type(error).__name__}: {error}"
            print(f"no attention picture of {self.folder.name}: {' '.join(reason.split())}", flush=True)


def _picture(module: LightningModule, data: ImageDataModule) -> Image.Image:
    net = module.net
    if not isinstance(net, VisionTransformer):
        raise UsageError(f"{type(net).__name__} is a whole model, which says nothing of its weights")
    images = data.examples(IMAGES)
    attn, tokens = net.blocks[-1].attn, net.pos_embed.shape[1]
    if isinstance(attn, Attention) and not isinstance(attn, LinearInfSA):
        numbers = tokens**2 * (attn.dim if isinstance(attn, HydraAttention) else attn.num_heads)
        if numbers > MOST_WEIGHTS:
            raise UsageError(f"the weights of {tokens:,} tokens would take {numbers * 4 / 1e9:,.1f} GB")
    inputs = data.normalised(images.to(module.device)).to(net.pos_embed.dtype)
    training = net.training
    net.eval()
    try:
        maps = torch.cat([token_map(net, image[None], "attention") for image in inputs]).cpu()
    finally:
        net.train(training)
    if not maps.isfinite().all():
        raise UsageError("the weights are not finite")
    return drawn(images, maps)


def drawn(images: Tensor, maps: Tensor) -> Image.Image:
    """The images in a row and below each the same under its map, brightest where the map is largest.

    Args:
        images: uint8 (B, 3, s, s).
        maps: (B, h, w), nonnegative.
    """
    size = images.shape[-1]
    side = min(size * -(-SIDES[0] // size), SIDES[1])
    sheet = Image.new("RGB", (len(images) * (side + GAP) - GAP, 2 * side + GAP), "white")
    for i, (image, weights) in enumerate(zip(images, maps, strict=True)):
        how = Image.Resampling.NEAREST if side % size == 0 else Image.Resampling.LANCZOS
        top = Image.fromarray(image.permute(1, 2, 0).cpu().numpy()).resize((side, side), how)
        heat = _coloured(weights / weights.max().clamp_min(torch.finfo(weights.dtype).tiny))
        below = Image.blend(top.convert("L").convert("RGB"), heat.resize((side, side), Image.Resampling.NEAREST), 0.65)
        sheet.paste(top, (i * (side + GAP), 0))
        sheet.paste(below, (i * (side + GAP), side + GAP))
    return sheet.quantize(128)  # a third of the bytes, and no difference that one sees


def _coloured(shares: Tensor) -> Image.Image:
    """(h, w) from 0 to 1 → its colours."""
    places = shares.numpy() * (len(HEAT) - 1)
    channels = [np.interp(places, range(len(HEAT)), HEAT[:, c]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))
