"""How an image becomes the square that the model sees: the exact pipeline and the random one of training."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F


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

    def __str__(self) -> str:
        return f"{self.size} px, PIL bicubic, centre crop {self.crop_ratio}"

    def evaluation(self) -> "View":
        """The same without randomness."""
        return View(self.size, self.crop_ratio)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> Tensor:
        """PIL image → uint8 (3, size, size), resized bicubically by PIL as timm and torchvision do."""
        if self.crop_scale is None:
            image = self._centre(image)
        else:
            box = random_box(image.width, image.height, self.crop_scale, rng)
            image = image.crop(box).resize((self.size, self.size), Image.Resampling.BICUBIC)
        if self.flip and rng.random() < 0.5:
            image = F.horizontal_flip(image)
        return F.pil_to_tensor(image)

    def boxes(self, boxes: Tensor, width: int, height: int) -> Tensor:
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


def random_box(
    width: int,
    height: int,
    scale: tuple[float, float],
    rng: np.random.Generator,
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of Inception's random crop, by torchvision's rule: ten tries, then the centre."""
    for _ in range(10):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h
