"""How a published model of timm sees an image: by the size, crop and interpolation that its weights were made for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor

from data.view import View


@dataclass(frozen=True)
class TimmView(View):
    """timm's own transform of evaluation.

    Args:
        interpolation: "bicubic", "bilinear", ...
        crop_mode: "center"; "squash", which keeps no aspect; "border", which pads.
        mean: of the channels on the scale [0, 1], the colour of a border.
    """

    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: Sequence[float] = field(default=(0.0, 0.0, 0.0), hash=False)  # a list, from a configuration

    def __str__(self) -> str:
        return f"{self.size} px, PIL {self.interpolation}, {self.crop_mode} crop {self.crop_ratio}"

    def evaluation(self) -> "TimmView":
        """Itself: nothing of it is random."""
        return self

    def __call__(self, image: Image.Image, key: Tensor | None = None) -> Tensor:
        """PIL image → uint8 (3, size, size)."""
        return torch.as_tensor(self._transform(image))

    @cached_property
    def _transform(self) -> Any:
        return create_transform(
            self.size,
            interpolation=self.interpolation,
            crop_pct=self.crop_ratio,
            crop_mode=self.crop_mode,
            mean=tuple(self.mean),
            use_prefetcher=True,  # bytes, which are normalised on the device
        )
