"""Encodes images as FFCV stores them, by one process per core."""

import contextlib
import hashlib
import io
import os
import re
import warnings
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import ExifTags, Image
from torch.utils.data import DataLoader, Dataset

from data.datasets.image_files import decoded
from data.datasets.source import ImageSet, Originals
from infvit.errors import expect
from infvit.measure.subprocess_case import end_with_parent

Pieces = list[list[int]]
"""Images by their indices, in the order of reading, those together that one process takes."""

BAD, CMYK, OTHER_FORMAT, ROTATED = 1, 2, 4, 8
"""Oddities: cannot be decoded (and was left out), CMYK, not the format that its name says, an EXIF rotation."""


MODES = ("raw", "jpg", "proportion", "smart")


@dataclass(frozen=True)
class BetonSettings:
    """How images lie in the file: `raw` pixels or `jpg`, at most `max_resolution` pixels on a side (None: as they are).

    ImageNet at 500 pixels and quality 90 takes about 90 GB, as raw pixels about 700 GB.

    Args:
        mode: FFCV's: "raw", "jpg", "proportion" (a share of the images as JPEG) or "smart" (JPEG for large ones).
        max_resolution: larger images are scaled down to it.
        quality: of JPEGs.
        jpg_share: with "proportion", the share of JPEGs.
        smart_threshold: with "smart", the bytes of pixels above which an image becomes a JPEG.
    """

    mode: str = "raw"
    max_resolution: int | None = None
    quality: int = 90
    jpg_share: float = 0.5
    smart_threshold: int | None = None

    def __post_init__(self) -> None:
        expect(self.mode in MODES, f"mode={self.mode}", f"one of {', '.join(MODES)}")
        expect(1 <= self.quality <= 100, f"quality={self.quality}", "1 to 100")
        largest = self.max_resolution
        expect(largest is None or largest >= 1, f"max_resolution={largest}", "1 pixel or more, or null")
        expect(0 <= self.jpg_share <= 1, f"jpg_share={self.jpg_share}", "a share, 0 to 1")


class Encoded(NamedTuple):
    """An image as it goes into the file, or the problem why it cannot."""

    sample: int
    mode: int = 0
    width: int = 0
    height: int = 0
    content: bytes = b""
    read: int = 0
    digest: bytes = bytes(32)
    oddities: int = 0
    problem: str = ""


def encoded(images: ImageSet, settings: BetonSettings, pieces: Pieces) -> Generator[list[Encoded], None, None]:
    """The images of each piece, encoded by one process per core, in order."""
    yield from in_processes(_Encoder(images, settings), pieces)


def in_processes(items: Dataset, pieces: Pieces) -> Generator[list, None, None]:
    """The items of each piece, made by one process per core, in order."""
    import ffcv.fields  # noqa: F401 - once here, not in every process

    if not pieces:
        return
    made: Any = iter(
        DataLoader(
            items,
            batch_sampler=pieces,
            num_workers=min(len(os.sched_getaffinity(0)), len(pieces)),
            collate_fn=list,
            worker_init_fn=_begin,
            generator=torch.Generator(),  # its seed must not come from the run's own randomness
            multiprocessing_context="fork",  # a list of a million images is shared, not sent to every process
        )
    )
    try:
        yield from made
    finally:
        # Now, and not when the error that holds it is forgotten: that might be in a process forked later.
        made._shutdown_workers()


def _begin(*_: int) -> None:
    """In a new process: one thread, as there is a process for every core, and no life without the parent.

    A process of torch that loses its parent may wait forever to hand over what it has, and would hold the lock of the
    file that is being written.
    """
    import cv2

    cv2.setNumThreads(0)
    end_with_parent()


class _Encoder(Dataset):
    def __init__(self, images: ImageSet, settings: BetonSettings) -> None:
        self.images, self.settings = images, settings

    def __getitem__(self, index: int) -> Encoded:
        if not isinstance(self.images, Originals):
            try:
                return encode(self.images[index][0], self.settings, index)
            except Exception as error:
                return Encoded(index, problem=f"{type(error).__name__}: {error}")
        try:
            original = self.images.read(index)
        except OSError as error:
            return Encoded(index, problem=f"it cannot be read, {error.strerror or error}")
        try:
            image, oddities = looked_at(original, self.images.title(index))
            one = encode(image, self.settings, index)
        except Exception as error:
            return Encoded(index, read=len(original), oddities=BAD, problem=f"no whole image, {_words(error)}")
        return one._replace(read=len(original), digest=hashlib.sha256(original).digest(), oddities=oddities)


def _words(error: Exception) -> str:
    # PIL names the buffer's address, which tells nobody anything.
    return re.sub(r" <_io\.BytesIO[^>]*>", "", " ".join(str(error).split())) or type(error).__name__


def looked_at(content: bytes, name: str) -> tuple[Image.Image, int]:
    """A file's bytes and its name → the image in RGB, and what is odd about it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of EXIF, which is often broken and never needed
        with Image.open(io.BytesIO(content)) as image:
            named = Image.registered_extensions().get(os.path.splitext(name)[1].lower(), image.format)
            is_named = image.format == named or {image.format, named} == {"JPEG", "MPO"}
            oddities = CMYK * (image.mode == "CMYK") | OTHER_FORMAT * (not is_named)
            with contextlib.suppress(Exception):
                oddities |= ROTATED * (image.getexif().get(ExifTags.Base.Orientation, 1) != 1)
        return decoded(content), oddities


def encode(image: Image.Image, settings: BetonSettings, sample: int) -> Encoded:
    """The image as FFCV stores it."""
    from ffcv.fields import RGBImageField

    field = RGBImageField(
        settings.mode, settings.max_resolution, settings.smart_threshold, settings.quality, settings.jpg_share
    )
    np.random.seed(sample)  # FFCV draws from it which images of the mode `proportion` become JPEGs
    about, given = np.zeros(1, field.metadata_type), []

    def give(size: int) -> tuple[int, np.ndarray]:
        given.append(np.empty(size, np.uint8))
        return 0, given[0]

    field.encode(about, np.asarray(image), give)
    mode, width, height, _ = about[0].tolist()
    return Encoded(sample, mode, width, height, given[0].tobytes())
