"""Augmentation of whole batches on their device, each image with its own draw.

RandAugment and ColorJitter come before normalisation, on bytes; RandomErasing after it. A recipe takes one of the first
two: with RandAugment, timm and DeiT leave colour jitter out.
"""

from data.augment.color_jitter import ColorJitter
from data.augment.erasing import RandomErasing
from data.augment.rand_augment import RandAugment

__all__ = ["ColorJitter", "RandAugment", "RandomErasing"]
