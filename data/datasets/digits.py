"""scikit-learn's digits: 1,797 real images of 8 × 8 pixels, which the package contains."""

import numpy as np
from sklearn.datasets import load_digits

from data.datasets.arrays import GreyImages, stratified
from data.datasets.source import ImageSet, Split


class Digits:
    """Handwritten digits (UCI optdigits test set), grey values 0..16 scaled to 0..255, in three equal channels.

    Args:
        val_fraction: share of the images for validation and test, drawn class by class.
    """

    classes = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self, val_fraction: float = 0.2) -> None:
        values, labels = load_digits(return_X_y=True)
        pixels = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        parts = zip(("train", "val"), stratified(labels, val_fraction), strict=True)
        self._sets = {name: GreyImages(pixels[indices], labels[indices]) for name, indices in parts}

    def split(self, split: Split) -> ImageSet:
        """Returns 1,437 images to train on, or 360 to validate and test on (at the default fraction)."""
        return self._sets[split]
