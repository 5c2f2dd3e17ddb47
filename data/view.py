"""How an image becomes the square that the model sees: the exact pipeline and the random one of training."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from data.draws import CROP, FLIP, uniforms
from infvit.errors import expect

ATTEMPTS = 10
"""How many random boxes are tried for an image before it gets the one in its centre."""


@dataclass(frozen=True)
class View:
    """Sizes and, in training, what is random.

    Args:
        size: side of the square, pixels.
        crop_ratio: without random crops, the share of the shorter side that the centre crop keeps.
        crop_scale: random resized crop: smallest and largest share of the area; None for the centre crop.
        flip: horizontal flip of every second image.
    """

    size: int
    crop_ratio: float = 0.875
    crop_scale: tuple[float, float] | None = None
    flip: bool = False

    def __post_init__(self) -> None:
        expect(self.size >= 1, f"size={self.size}", "1 pixel or more")
        expect(0 < self.crop_ratio <= 1, f"crop_ratio={self.crop_ratio}", "a share above 0, at most 1")
        if self.crop_scale is not None:
            least, most = self.crop_scale
            expect(0 < least <= most <= 1, f"crop_scale=[{least}, {most}]", "shares, 0 < least ≤ most ≤ 1")

    def __str__(self) -> str:
        return f"{self.size} px, PIL bicubic, centre crop {self.crop_ratio}"

    def evaluation(self) -> "View":
        """The same without randomness."""
        return View(self.size, self.crop_ratio)

    def __call__(self, image: Image.Image, key: Tensor | None = None) -> Tensor:
        """PIL image → uint8 (3, size, size), resized bicubically by PIL as timm and torchvision do.

        `key`, (1,) int64, is what random crops and flips are drawn from; other views need none.
        """
        if self.crop_scale is None:
            image = self._centre(image)
        else:
            assert key is not None
            left, top, width, height = self.boxes(key, *torch.tensor(image.size).view(2, 1))[0].tolist()
            box = (left, top, left + width, top + height)
            image = image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.flip and key is not None and self.flips(key).item():
            image = F.horizontal_flip(image)
        return F.pil_to_tensor(image)

    def placed(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes in an image as boxes in its view without randomness, scaled, shifted and clipped as its pixels are.

        Args:
            boxes: (n, 4) of left, top, right, bottom in pixels of an image of `width` × `height`.

        Returns:
            (n, 4) float32, in pixels of the view; what lies outside of it has no area.
        """
        placed = tv_tensors.BoundingBoxes(
            boxes.float(), format=tv_tensors.BoundingBoxFormat.XYXY, canvas_size=(height, width)
        )
        return self._centre(placed).as_subclass(Tensor)

    def _centre(self, image: Any) -> Any:
        """The shorter side resized, the centre cropped: of a PIL image or of torchvision's boxes."""
        shorter = math.floor(self.size / self.crop_ratio)
        image = F.resize(image, [shorter], interpolation=v2.InterpolationMode.BICUBIC)
        return F.center_crop(image, [self.size, self.size])

    def boxes(self, keys: Tensor, widths: Tensor, heights: Tensor) -> Tensor:
        """(left, top, width, height) of what is cut out of images of these sizes and keys, all (n,): (n, 4) int64.

        Without `crop_scale` the centred square, as FFCV cuts it.
        """
        if self.crop_scale is not None:
            return random_boxes(keys, widths, heights, self.crop_scale)
        side = (torch.minimum(widths, heights).double() * self.crop_ratio).long()
        return torch.stack([(widths - side) // 2, (heights - side) // 2, side, side], dim=1)

    def flips(self, keys: Tensor) -> Tensor:
        """Which of the images with these keys (n,) are mirrored: (n,) bool."""
        return uniforms(keys, FLIP, 1)[0] < (0.5 if self.flip else 0)


def random_boxes(
    keys: Tensor,
    widths: Tensor,
    heights: Tensor,
    scale: tuple[float, float],
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Inception's random crops by torchvision's rule, ten tries, then the centre: (left, top, width, height) (n, 4).

    Each is drawn from the key of its image alone; `keys`, `widths` and `heights` are (n,) int64, as is the result.
    """
    size, shape, x, y = uniforms(keys, CROP, 4 * ATTEMPTS).double().view(4, ATTEMPTS, -1)
    area = widths * heights * (scale[0] + (scale[1] - scale[0]) * size)
    low, high = math.log(ratio[0]), math.log(ratio[1])
    aspect = (low + (high - low) * shape).exp()
    w, h = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
    fits = (w > 0) & (w <= widths) & (h > 0) & (h <= heights)
    tries = torch.stack([(x * (widths - w + 1)).long(), (y * (heights - h + 1)).long(), w, h])
    first = fits.int().argmax(0).expand(4, 1, -1)
    w = torch.minimum(widths, (heights.double() * ratio[1]).round().long())
    h = torch.minimum(heights, (widths.double() / ratio[0]).round().long())
    centre = torch.stack([(widths - w) // 2, (heights - h) // 2, w, h])
    return torch.where(fits.any(0), tries.gather(1, first)[:, 0], centre).T
