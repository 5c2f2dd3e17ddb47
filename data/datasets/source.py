"""What a data set is before any loader: named classes and, per split, real images with labels."""

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
        """An RGB image and its label."""
        ...

    def fingerprint(self) -> str:
        """sha256 over the content of images and labels, in order; the same wherever the same data lie."""
        ...


@runtime_checkable
class Originals(Protocol):
    """Images that lie somewhere as encoded files."""

    def read(self, index: int) -> bytes:
        """The image as it was published, still encoded."""
        ...

    def title(self, index: int) -> str:
        """Where a person finds the image."""
        ...


@runtime_checkable
class InPieces(Protocol):
    """Images that say in which order they are best read."""

    def pieces(self) -> list[list[int]]:
        """All indices once, in the order in which the images lie, in parts that are read together."""
        ...


class Source(Protocol):
    """A data set with a training split, empty where the data are for evaluation alone, and a validation split."""

    classes: list[str]

    def split(self, split: Split) -> ImageSet: ...
