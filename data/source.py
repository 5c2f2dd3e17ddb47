"""What a data set is before any loader: named classes and, per split, real images with labels."""

from typing import Literal, Protocol

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


class Source(Protocol):
    """A data set with a training split, empty where the data are for evaluation alone, and a validation split."""

    classes: list[str]

    def split(self, split: Split) -> ImageSet: ...
