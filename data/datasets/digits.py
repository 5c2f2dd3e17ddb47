"""scikit-learn's digits: 1,797 real images of 8 × 8 pixels, in the package, nothing to download."""

import numpy as np
from sklearn.datasets import load_digits

from data.datasets.arrays import GreyImages, stratified
from data.datasets.source import ImageSet, Split


class Digits:
    """Handwritten digits (UCI optdigits test set), grey values 0..16 stretched to 0..255, repeated in three channels.

    Args:
        val_fraction: share of the images, drawn class by class, that is kept for validation and test.
    """

    classes = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self, val_fraction: float = 0.2) -> None:
        values, labels = load_digits(return_X_y=True)
        pixels = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        parts = zip(("train", "val"), stratified(labels, val_fraction), strict=True)
        self._sets = {name: GreyImages(pixels[indices], labels[indices]) for name, indices in parts}

    def split(self, split: Split) -> ImageSet:
        """1,437 images to train on, 360 to validate with (at the default fraction)."""
        return self._sets[split]
