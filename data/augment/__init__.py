"""Augmentation of whole batches on their device, each image with its own draw.

RandAugment comes before normalisation, on bytes; RandomErasing after it. Colour jitter is not here: with RandAugment,
timm and DeiT leave it out.
"""

from data.augment.erasing import RandomErasing
from data.augment.rand_augment import RandAugment

__all__ = ["RandAugment", "RandomErasing"]
