"""The square that the model sees of an image: the exact pipeline of evaluation and the random one of training."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms.v2 import functional as F

from data.draws import CROP, FLIP, uniforms
from infvit.errors import expect

ATTEMPTS = 10
"""Random boxes that are drawn for an image until one fits; if none does, it gets the one in its centre."""

RATIO = (3 / 4, 4 / 3)
"""Smallest and largest width / height of a random box."""


@dataclass(frozen=True)
class View:
    """The model's input: its size, in training the random crop and flip, and the exact transform of evaluation.

    Args:
        size: side of the square, pixels.
        crop_ratio: share of the shorter side that the centre crop of evaluation keeps.
        crop_scale: smallest and largest share of the area of a random resized crop; None for the centre crop.
        flip: flip horizontally with probability 1/2.
        interpolation: of evaluation: "bicubic", "bilinear", ...; training is bicubic.
        crop_mode: of evaluation: "center"; "squash", which does not keep the aspect ratio; "border", which pads.
        mean: of the channels on the scale [0, 1], the colour of a border.
    """

    size: int
    crop_ratio: float = 0.875
    crop_scale: tuple[float, float] | None = None
    flip: bool = False
    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: Sequence[float] = (0.0, 0.0, 0.0)

    def __post_init__(self) -> None:
        expect(self.size >= 1, f"size={self.size}", "1 pixel or more")
        expect(0 < self.crop_ratio <= 1, f"crop_ratio={self.crop_ratio}", "a share above 0, at most 1")
        if self.crop_scale is not None:
            least, most = self.crop_scale
            expect(0 < least <= most <= 1, f"crop_scale=[{least}, {most}]", "shares, 0 < least ≤ most ≤ 1")

    def __str__(self) -> str:
        return f"{self.size} px, PIL {self.interpolation}, {self.crop_mode} crop {self.crop_ratio}"

    def evaluation(self) -> "View":
        """Returns the same view without randomness."""
        return replace(self, crop_scale=None, flip=False)

    def __call__(self, image: Image.Image, key: Tensor | None = None) -> Tensor:
        """PIL image → uint8 (3, size, size), resized by PIL as timm and torchvision do.

        `key`, (1,) int64, determines the random crop and flip; a view without them needs none.
        """
        if self.crop_scale is None:
            pixels = torch.as_tensor(self._exact(image))
        else:
            assert key is not None
            left, top, width, height = self.boxes(key, *torch.tensor(image.size).view(2, 1))[0].tolist()
            box = (left, top, left + width, top + height)
            pixels = F.pil_to_tensor(image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC))
        return pixels.flip(-1) if self.flip and key is not None and self.flips(key).item() else pixels

    @cached_property
    def _exact(self) -> Any:
        return create_transform(
            self.size,
            interpolation=self.interpolation,
            crop_pct=self.crop_ratio,
            crop_mode=self.crop_mode,
            mean=tuple(self.mean),
            use_prefetcher=True,  # uint8, which is normalised on the device
        )

    def boxes_in_view(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Returns boxes in an image as boxes in its evaluation view: scaled, shifted and clipped as its pixels are.

        Args:
            boxes: (n, 4) of left, top, right, bottom in pixels of an image of `width` × `height`.

        Returns:
            (n, 4) float32, in pixels of the view; a box outside of it has no area.
        """
        xyxy = tv_tensors.BoundingBoxFormat.XYXY
        moved = tv_tensors.BoundingBoxes(boxes.float(), format=xyxy, canvas_size=(height, width))
        moved = F.resize(moved, [math.floor(self.size / self.crop_ratio)])
        return F.center_crop(moved, [self.size, self.size]).as_subclass(Tensor)

    def boxes(self, keys: Tensor, widths: Tensor, heights: Tensor) -> Tensor:
        """Returns the crops (left, top, width, height) of images of these sizes and keys, all (n,): (n, 4) int64.

        Without `crop_scale` it is the centred square, as FFCV crops it.
        """
        if self.crop_scale is not None:
            return random_boxes(keys, widths, heights, self.crop_scale)
        side = (torch.minimum(widths, heights).double() * self.crop_ratio).long().clamp(min=1)
        return torch.stack([(widths - side) // 2, (heights - side) // 2, side, side], dim=1)

    def flips(self, keys: Tensor) -> Tensor:
        """Returns which of the images with these keys (n,) are flipped: (n,) bool."""
        return uniforms(keys, FLIP, 1)[0] < (0.5 if self.flip else 0)


def random_boxes(keys: Tensor, widths: Tensor, heights: Tensor, scale: tuple[float, float]) -> Tensor:
    """Returns Inception's random crops by torchvision's rule: (left, top, width, height), (n, 4) int64.

    Each is drawn from the key of its image alone; `keys`, `widths` and `heights` are (n,) int64.
    """
    size, shape, x, y = uniforms(keys, CROP, 4 * ATTEMPTS).double().view(4, ATTEMPTS, -1)
    area = widths * heights * (scale[0] + (scale[1] - scale[0]) * size)
    low, high = math.log(RATIO[0]), math.log(RATIO[1])
    aspect = (low + (high - low) * shape).exp()
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
    tries = torch.stack([(x * (widths - w + 1)).long(), (y * (heights - h + 1)).long(), w, h])
    first = fits.int().argmax(0).expand(4, 1, -1)
    w = torch.minimum(widths, (heights.double() * RATIO[1]).round().long())
    h = torch.minimum(heights, (widths.double() / RATIO[0]).round().long())
    centre = torch.stack([(widths - w) // 2, (heights - h) // 2, w, h])
    return torch.where(fits.any(0), tries.gather(1, first)[:, 0], centre).T
