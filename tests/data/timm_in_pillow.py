"""timm's RandAugment on one image in Pillow: the slow twin of data/augment."""

from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment
from torch import Tensor

from data.augment.operations import IMAGENET_MEAN

RESAMPLE = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def to_pil(image: Tensor) -> Image.Image:
    """A uint8 image (3, H, W) for Pillow."""
    return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


def to_tensor(image: Image.Image) -> Tensor:
    """A Pillow RGB image as uint8 (3, H, W)."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def _or_black(posterize: Callable[..., Image.Image]) -> Callable[..., Image.Image]:
    # timm asks for 0 bits at magnitude 10, which Pillow used to answer with black and now refuses.
    def patched(image: Image.Image, bits: int, **options: object) -> Image.Image:
        return posterize(image, bits, **options) if bits else Image.new(image.mode, image.size)

    return patched


def operation(name: str, image: Tensor, magnitude: float, interpolation: str) -> Tensor:
    """timm's operation `name` on a uint8 image (3, H, W); timm's coin decides the sign of `magnitude`."""
    level = auto_augment.LEVEL_TO_ARG[name]
    arguments = level(magnitude, {}) if level else ()
    apply = auto_augment.NAME_TO_OP[name]
    if "Posterize" in name:
        apply = _or_black(apply)
    return to_tensor(apply(to_pil(image), *arguments, fillcolor=IMAGENET_MEAN, resample=RESAMPLE[interpolation]))


def rand_augment(interpolation: str = "bicubic") -> auto_augment.RandAugment:
    """timm's transform of Pillow images as in DeiT's recipe."""
    options = {"img_mean": IMAGENET_MEAN, "interpolation": RESAMPLE[interpolation]}
    policy = auto_augment.rand_augment_transform("rand-m9-mstd0.5-inc1", options)
    for op in policy.ops:
        if "Posterize" in op.name:
            op.aug_fn = _or_black(op.aug_fn)
    return policy
