"""The interface of a data set, before any loader: named classes and, for each split, images with labels."""

from typing import Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

Split = Literal["train", "val"]


class ImageSet(Protocol):
    """The images of one split, in a fixed order."""

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


@runtime_checkable
class InPieces(Protocol):
    """Images that have a best order of reading."""

    def pieces(self) -> list[list[int]]:
        """Returns all indices once, in the order in which the images are stored, in parts that are read together."""
        ...


class Source(Protocol):
    """A data set with a training split, empty where the data are for evaluation alone, and a validation split."""

    classes: list[str]

    def split(self, split: Split) -> ImageSet: ...
