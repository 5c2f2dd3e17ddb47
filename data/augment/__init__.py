"""Augmentation of whole batches on their device; each image has its own random draws.

RandAugment works on bytes, before normalisation; RandomErasing on floats, after it.
"""

from data.augment.erasing import RandomErasing
from data.augment.rand_augment import RandAugment

__all__ = ["RandAugment", "RandomErasing"]
