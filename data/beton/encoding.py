"""Encodes images as FFCV stores them, with one process per core."""

import hashlib
import os
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from data.datasets.source import ImageSet, Originals
from infvit.errors import expect
from infvit.image_file import BadImageError, decode
from infvit.measure.subprocess_case import end_with_parent

Pieces = list[list[int]]
"""Indices of images in the order of reading; one process takes the images of a piece together."""


@dataclass(frozen=True)
class BetonSettings:
    """How images are stored: as `raw` pixels or as `jpg`, with at most `max_resolution` pixels on a side.

    ImageNet at 500 pixels and quality 90 takes about 90 GB, as raw pixels about 700 GB.

    Args:
        mode: "raw" or "jpg".
        max_resolution: larger images are scaled down to it; None keeps their size.
        quality: of JPEGs, 1 to 100.
    """

    mode: Literal["raw", "jpg"] = "raw"
    max_resolution: int | None = None
    quality: int = 90

    def __post_init__(self) -> None:
        expect(self.mode in ("raw", "jpg"), f"mode={self.mode}", "one of raw, jpg")
        expect(1 <= self.quality <= 100, f"quality={self.quality}", "1 to 100")
        largest = self.max_resolution
        expect(largest is None or largest >= 1, f"max_resolution={largest}", "1 pixel or more, or null")


class Encoded(NamedTuple):
    """An image as it is stored in the file, or the problem why it cannot be."""

    sample: int
    mode: int = 0
    width: int = 0
    height: int = 0
    content: bytes = b""
    read: int = 0
    digest: bytes = bytes(32)
    bad: bool = False
    """it can be read, but not decoded"""
    problem: str = ""


def encode_all(images: ImageSet, settings: BetonSettings, pieces: Pieces) -> Generator[list[Encoded], None, None]:
    """Yields the encoded images of each piece, computed by one process per core, in order."""
    import ffcv.fields  # noqa: F401 - once here, not in every process

    if not pieces:
        return
    batches: Any = iter(
        DataLoader(
            _Encoder(images, settings),
            batch_sampler=pieces,
            num_workers=min(len(os.sched_getaffinity(0)), len(pieces)),
            collate_fn=list,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # its seed must not come from the run's own generator
            multiprocessing_context="fork",  # shares a list of a million images instead of sending it
        )
    )
    try:
        yield from batches
    finally:
        # Now, and not when the error that refers to it is garbage-collected, possibly in a process forked later.
        batches._shutdown_workers()


def _begin(*_: int) -> None:
    """Makes a new process use one thread, as there is a process per core, and end with its parent.

    A worker of torch that loses its parent may wait forever to hand over its batch, and would hold the lock of the file
    that is being written.
    """
    import cv2

    cv2.setNumThreads(0)
    warnings.simplefilter("ignore")  # about EXIF, which is often broken and never needed
    end_with_parent()


class _Encoder(Dataset):
    def __init__(self, images: ImageSet, settings: BetonSettings) -> None:
        self.images, self.settings = images, settings

    def __getitem__(self, index: int) -> Encoded:
        original: bytes | None = None
        try:
            if not isinstance(self.images, Originals):
                return encode(self.images[index][0], self.settings, index)
            original = self.images.read(index)
            encoded = encode(decode(original), self.settings, index)
            return encoded._replace(read=len(original), digest=hashlib.sha256(original).digest())
        except Exception as error:
            reason = " ".join(str(error).split())
            problem = reason if isinstance(error, BadImageError) else f"{type(error).__name__}: {reason}"
            problem = f"{'it cannot be read' if original is None else 'not a whole image'}, {problem}"
            return Encoded(index, bad=original is not None, problem=problem)


def encode(image: Image.Image, settings: BetonSettings, sample: int) -> Encoded:
    """Returns the image as FFCV stores it."""
    from ffcv.fields import RGBImageField

    field = RGBImageField(settings.mode, settings.max_resolution, jpeg_quality=settings.quality)
    metadata, buffers = np.zeros(1, field.metadata_type), []

    def allocate(size: int) -> tuple[int, np.ndarray]:
        buffers.append(np.empty(size, np.uint8))
        return 0, buffers[0]

    scale = (settings.max_resolution or max(image.size)) / max(image.size)
    if min(image.size) * scale < 1:  # FFCV would scale the shorter side to 0 pixels
        image = image.resize([max(int(side * scale), 1) for side in image.size])
    field.encode(metadata, np.asarray(image), allocate)
    mode, width, height, _ = metadata[0].tolist()
    return Encoded(sample, mode, width, height, buffers[0].tobytes())
