"""Random erasing on the device: a rectangle of noise in some images of a batch, each with its own rectangle.

Source: Zhong et al., "Random Erasing Data Augmentation", arXiv:1708.04896, by the rules of timm/data/random_erasing.py
in mode `pixel` with one rectangle, as DeiT uses it.
"""

import math

import torch
from torch import Tensor, nn

from data.draws import NOISE, RECTANGLES, advance, normals, uniforms
from infvit.errors import expect

AREA, ASPECT = (0.02, 1 / 3), 0.3
"""Smallest and largest share of the area, and smallest height / width, that a rectangle has; timm's defaults."""

ATTEMPTS = 10
"""Rectangles that are drawn for an image until one fits; if none does, nothing is erased."""


class RandomErasing(nn.Module):
    """Replaces in each image, with `probability`, one random rectangle by noise from N(0, 1), drawn per value.

    Call it after normalisation, where values have mean 0 and deviation 1. The area of the rectangle is uniform in
    `AREA`, its height / width log-uniform in [ASPECT, 1 / ASPECT]. Everything is drawn from the key of each image, so
    its neighbours in the batch do not matter. The host waits once per call for the device.
    """

    def __init__(self, probability: float = 0.25) -> None:
        super().__init__()
        expect(0 <= probability <= 1, f"RandomErasing's probability is {probability}", "0 to 1")
        self.probability = probability

    def draw(self, keys: Tensor, height: int, width: int) -> Tensor:
        """Returns the rectangles for images of `height` x `width` pixels with these keys (n,); see data/draws.py.

        They are (4, n) int64: top, left, height, width, the last two 0 where nothing is erased.
        """
        low, high = AREA
        u = uniforms(keys, RECTANGLES, 2 * ATTEMPTS + 3)
        area = (low + (high - low) * u[:ATTEMPTS]) * (height * width)
        log_aspect = math.log(ASPECT) * (1 - 2 * u[ATTEMPTS:-3])
        h = (area * log_aspect.exp()).sqrt_().round_().long()
        w = (area / log_aspect.exp()).sqrt_().round_().long()
        fits = (h < height) & (w < width)
        first = fits.int().argmax(0, keepdim=True)
        erased = fits.any(0) & (u[-3] < self.probability)
        h, w = h.gather(0, first)[0] * erased, w.gather(0, first)[0] * erased
        top = (u[-2] * (height - h + 1)).long()
        left = (u[-1] * (width - w + 1)).long()
        return torch.stack([top, left, h, w])

    @torch.no_grad()
    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Erases in normalised floating-point images (B, C, H, W) with `keys` (B,), in place, and returns them."""
        n, channels, H, W = images.shape
        top, left, height, width = self.draw(keys, H, W)
        y, x = torch.arange(H, device=images.device), torch.arange(W, device=images.device)
        rows = (y >= top.view(n, 1)) & (y < (top + height).view(n, 1))
        columns = (x >= left.view(n, 1)) & (x < (left + width).view(n, 1))
        mask = (rows.unsqueeze(2) & columns.unsqueeze(1)).unsqueeze(1)
        counts = channels * height * width
        ends = counts.cumsum(0)
        total = int(ends[-1]) if n else 0
        # The erased values of all images in one row; each is drawn from its image's key and its position in that image.
        own = advance(keys, NOISE - (ends - counts)).repeat_interleave(counts, output_size=total)
        places = torch.arange(total, device=images.device)
        # In parts that fit into a CPU's caches.
        part = 1 << 15 if images.device.type == "cpu" else max(total, 1)
        noise = torch.cat([normals(*both) for both in zip(own.split(part), places.split(part), strict=True)])
        return images.masked_scatter_(mask, noise.to(images.dtype))
