"""Draws a map in colours over its image."""

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Colours from 0 to the largest weight, with increasing lightness (matplotlib's inferno at five points)."""

OPACITY = 0.65
"""Default opacity of the colours over the grey image."""


def picture(image: Tensor) -> Image.Image:
    """uint8 (3, height, width) → the image."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def coloured(weights: Tensor) -> Image.Image:
    """A nonnegative map (h, w) → h × w pixels, lightest at its largest value."""
    places = (weights / weights.max().clamp_min(torch.finfo(weights.dtype).tiny)).numpy() * (len(HEAT) - 1)
    channels = [np.interp(places, range(len(HEAT)), [colour[c] for colour in HEAT]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def enlarged(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resizes the image; small ones keep square pixels."""
    how = Image.Resampling.NEAREST if 2 * image.width <= width else Image.Resampling.LANCZOS
    return image.resize((width, height), how)


def over(image: Image.Image, weights: Tensor, opacity: float = OPACITY) -> Image.Image:
    """The grey image under the colours of a map (h, w), one square of pixels per token."""
    heat = coloured(weights).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image.convert("L").convert("RGB"), heat, opacity)
