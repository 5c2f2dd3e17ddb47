"""scikit-learn's digits: 1,797 real images of 8 × 8 pixels, in the package, nothing to download."""

import hashlib
from typing import Literal

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from data.source import ImageSet

SPLIT_SEED = 0
"""The split is part of the data: it does not change with a run's seed."""


class Digits:
    """Handwritten digits (UCI optdigits test set), grey values 0..16 stretched to 0..255, repeated in three channels.

    Args:
        val_fraction: share of the images, drawn class by class, that is kept for validation and test.
    """

    classes = [str(digit) for digit in range(10)]  # noqa: RUF012

    def __init__(self, val_fraction: float = 0.2) -> None:
        values, labels = load_digits(return_X_y=True)
        train, val = train_test_split(
            np.arange(len(labels)), test_size=val_fraction, stratify=labels, random_state=SPLIT_SEED
        )
        pixels = np.round(values * (255 / 16)).astype(np.uint8).reshape(-1, 8, 8)
        parts = {"train": np.sort(train), "val": np.sort(val)}
        self._sets = {name: _Arrays(pixels[indices], labels[indices]) for name, indices in parts.items()}

    def split(self, split: Literal["train", "val"]) -> ImageSet:
        """1,437 images to train on, 360 to validate with (at the default fraction)."""
        return self._sets[split]


class _Arrays:
    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]).convert("RGB"), int(self.labels[index])

    def fingerprint(self) -> str:
        return hashlib.sha256(self.pixels.tobytes() + self.labels.tobytes()).hexdigest()
