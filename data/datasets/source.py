"""The interface of a data set, before any loader: named classes and, for each split, images with labels."""

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


class ImageSet(Protocol):
    """The images of one split, in a fixed order.

    A set may also have `pieces()`: all indices once, in the order of storage, in parts that are best read together.
    """

    labels: np.ndarray
    """(n,) int64"""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        """Returns an RGB image and its label."""
        ...

    def fingerprint(self) -> str:
        """Returns the sha256 of images and labels, in order; the same wherever the same data are stored."""
        ...


@runtime_checkable
class Originals(Protocol):
    """Images that are stored as encoded files."""

    def read(self, index: int) -> bytes:
        """Returns the file of the image as it was published."""
        ...

    def title(self, index: int) -> str:
        """Returns the place of the image, for messages."""
        ...


class Source:
    """A data set: the names of its classes, and the images of each split.

    Args:
        classes: names of the labels.
        train: images to train on, empty where the data are for evaluation alone.
        val: images to validate and test on.
    """

    def __init__(self, classes: list[str], train: ImageSet, val: ImageSet) -> None:
        self.classes = classes
        self._sets: dict[Split, ImageSet] = {"train": train, "val": val}

    def split(self, split: Split) -> ImageSet:
        return self._sets[split]
