"""scikit-learn's digits: 1,797 real images of 8 × 8 pixels, which the package contains."""

import numpy as np
from sklearn.datasets import load_digits

from data.datasets.arrays import GreyDigits


class Digits(GreyDigits):
    """Handwritten digits (UCI optdigits test set), grey values 0..16 scaled to 0..255, in three equal channels.

    By default 1,437 images to train on, and 360 to validate and test on.

    Args:
        val_fraction: share of the images for validation and test, drawn class by class.
    """

    def __init__(self, val_fraction: float = 0.2) -> None:
        values, labels = load_digits(return_X_y=True)
        super().__init__(np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8), labels, val_fraction)
