"""Colour jitter on the device: brightness, contrast and saturation, each image with its own factors and order.

As torchvision.transforms.ColorJitter without hue. timm and DeiT use it where there is no RandAugment.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.augment.grouping import apply_in_groups
from data.augment.operations import brightness, color, contrast
from data.draws import JITTER, fresh_keys, uniforms
from infvit.errors import UsageError

CHANGES = (brightness, contrast, color)


class Jitter(NamedTuple):
    """For n images: `order` (3, n), which of CHANGES comes first, second, third; `factor` (3, n) of each of them."""

    order: Tensor
    factor: Tensor


class ColorJitter(nn.Module):
    """Changes brightness, contrast and saturation by factors drawn from [1 - x, 1 + x], in an order drawn as well.

    All is drawn from the key of each image. Values are Pillow's.
    """

    def __init__(
        self, brightness: float = 0.3, contrast: float = 0.3, saturation: float = 0.3, inplace: bool = False
    ) -> None:
        super().__init__()
        self.reach = (brightness, contrast, saturation)
        if not all(0 <= reach <= 1 for reach in self.reach):
            raise UsageError(f"ColorJitter's brightness, contrast, saturation are {self.reach}; expected 0 to 1.")
        self.inplace = inplace

    def extra_repr(self) -> str:
        return "brightness={}, contrast={}, saturation={}".format(*self.reach)

    def draw(self, keys: Tensor) -> Jitter:
        """What the images with these keys (n,) undergo; see data/draws.py."""
        u = uniforms(keys, JITTER, 6)
        reach = torch.tensor(self.reach, device=keys.device).view(3, 1)
        return Jitter(u[:3].argsort(0), 1 + reach * (2 * u[3:] - 1))

    @torch.no_grad()
    def forward(self, images: Tensor, keys: Tensor | None = None, jitter: Jitter | None = None) -> Tensor:
        """uint8 `images` (B, 3, H, W) → the same shape; with `inplace`, contiguous images are overwritten and returned.

        `keys` (B,) are those of the images; without, they come from the default generator of the device. `jitter` says
        what to do instead of `self.draw(keys)`. Raises UsageError for another shape or dtype.
        """
        if images.ndim != 4 or images.shape[1] != 3 or images.dtype != torch.uint8:
            raise UsageError(
                f"ColorJitter got {images.dtype} images of shape {tuple(images.shape)}; expected uint8 (B, 3, H, W)."
            )
        if jitter is None:
            jitter = self.draw(fresh_keys(len(images), images.device) if keys is None else keys)
        order, factor = jitter

        def apply(_: int, kind: int, chosen: Tensor, index: Tensor) -> Tensor:
            return CHANGES[kind](chosen, factor[kind, index])

        own = images if self.inplace and images.is_contiguous() else images.clone(memory_format=torch.contiguous_format)
        return apply_in_groups(own, order, len(CHANGES), apply)
