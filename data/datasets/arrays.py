"""Small grey images in memory, their fixed split, and a part of any image set."""

import hashlib

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split

from data.datasets.source import ImageSet, Source
from infvit.errors import UsageError

SPLIT_SEED = 0
"""A split belongs to the data set: it does not change with a run's seed."""


def stratified(labels: np.ndarray, part: float | int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the sorted indices into `labels` (n,) of (the rest, the part), which is drawn class by class."""
    try:
        others, chosen = train_test_split(
            np.arange(len(labels)), test_size=part, stratify=labels, random_state=SPLIT_SEED, shuffle=True
        )
    except ValueError as error:
        raise UsageError(f"{part} of {len(labels):,} images cannot be drawn class by class: {error}") from error
    return np.sort(others), np.sort(chosen)


class GreyImages:
    """Grey images in memory, (n, h, w) uint8 with labels (n,), returned with three equal channels."""

    def __init__(self, pixels: np.ndarray, labels: np.ndarray) -> None:
        self.pixels, self.labels = pixels, labels.astype(np.int64)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.pixels[index]).convert("RGB"), int(self.labels[index])

    def fingerprint(self) -> str:
        return hashlib.sha256(self.pixels.tobytes() + self.labels.tobytes()).hexdigest()


class Part:
    """The images of a set at some indices."""

    def __init__(self, images: ImageSet, indices: np.ndarray) -> None:
        self.images, self.indices, self.labels = images, indices, images.labels[indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[int(self.indices[index])]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.images.fingerprint().encode() + self.indices.tobytes()).hexdigest()


class GreyDigits(Source):
    """The ten digits as grey images in memory.

    Args:
        pixels: (n, h, w) uint8.
        labels: (n,)
        part: share or number of the images for validation and test, drawn class by class.
    """

    def __init__(self, pixels: np.ndarray, labels: np.ndarray, part: float | int) -> None:
        splits = (GreyImages(pixels[indices], labels[indices]) for indices in stratified(labels, part))
        super().__init__([str(digit) for digit in range(10)], *splits)


class HeldOut(Source):
    """A source that validates on a part of its training images, so that a search never sees the test images.

    Args:
        source: the data set; its own validation images, which are its test, are never read.
        fraction: share of the training images, drawn class by class, the same for every seed of a run.
    """

    def __init__(self, source: Source, fraction: float) -> None:
        train = source.split("train")
        super().__init__(source.classes, *(Part(train, indices) for indices in stratified(train.labels, fraction)))
