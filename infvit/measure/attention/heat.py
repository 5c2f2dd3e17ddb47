"""Draws a map in colours over its image."""

import base64
import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor

HEAT = ((0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164))
"""Colours from 0 to the largest weight, with increasing lightness (matplotlib's inferno at five points)."""

OPACITY = 0.65
"""Default opacity of the colours over the grey image."""

SIDES = 96, 144
"""Pixels of an image in a sheet: smaller ones are enlarged to at least 96, larger ones reduced to 144."""

GAP = 4
"""Pixels between images."""


def picture(image: Tensor) -> Image.Image:
    """uint8 (3, height, width) → the image."""
    return Image.fromarray(image.permute(1, 2, 0).cpu().numpy())


def inlined(image: Image.Image, form: str = "png") -> str:
    """The image as a data URI."""
    content = io.BytesIO()
    image.save(content, form, optimize=True, quality=88)
    return f"data:image/{form};base64,{base64.b64encode(content.getvalue()).decode()}"


def coloured(weights: Tensor) -> Image.Image:
    """A nonnegative map (h, w) → h × w pixels, lightest at its largest value."""
    places = (weights / weights.max().clamp_min(torch.finfo(weights.dtype).tiny)).numpy() * (len(HEAT) - 1)
    channels = [np.interp(places, range(len(HEAT)), [colour[c] for colour in HEAT]) for c in range(3)]
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def resized(image: Image.Image, width: int, height: int) -> Image.Image:
    """Resizes the image; small ones keep square pixels."""
    how = Image.Resampling.NEAREST if 2 * image.width <= width else Image.Resampling.LANCZOS
    return image.resize((width, height), how)


def over(image: Image.Image, weights: Tensor, opacity: float = OPACITY) -> Image.Image:
    """The grey image under the colours of a map (h, w), one square of pixels per token."""
    heat = coloured(weights).resize(image.size, Image.Resampling.NEAREST)
    return Image.blend(image.convert("L").convert("RGB"), heat, opacity)


def draw_sheet(images: Tensor, *maps: Tensor) -> Image.Image:
    """The images in a row and, below it, a row for each of the maps: the images, brightest where the map is largest.

    Args:
        images: uint8 (B, 3, s, s).
        maps: each (B, h, w), nonnegative.
    """
    size = images.shape[-1]
    side = min(size * -(-SIDES[0] // size), SIDES[1])
    sheet = Image.new("RGB", (len(images) * (side + GAP) - GAP, (len(maps) + 1) * (side + GAP) - GAP), "white")
    for i, image in enumerate(images):
        top = resized(picture(image), side, side)
        sheet.paste(top, (i * (side + GAP), 0))
        for row, weights in enumerate(maps, start=1):
            sheet.paste(over(top, weights[i]), (i * (side + GAP), row * (side + GAP)))
    return sheet.quantize(128)  # a third of the bytes, without a visible difference
