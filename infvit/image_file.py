"""Finds and decodes image files: one rule for training, preparation, evaluation, prediction and high resolution."""

import io
import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.TiffImagePlugin import BITSPERSAMPLE, PHOTOMETRIC_INTERPRETATION

from infvit.errors import UsageError

SUFFIXES = {".avif", ".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
"""Endings of images in a folder, in lower case; the content decides how a file is decoded."""

LEFT = {"__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN"}
"""Folders that systems leave in a tree, with copies of its images."""

EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "RGBa", "CMYK", "YCbCr"}
"""Modes of Pillow that become RGB as by torchvision and timm: transparency is ignored."""


class BadImageError(ValueError):
    """A file that is not a whole image, or has no pixels of 8 bits; the message says which."""


def decode(content: bytes) -> Image.Image:
    """The content of a file → RGB, whatever its name; EXIF rotation is ignored, as in torchvision and timm.

    Of 16 bits the upper 8 are kept: what Pillow does with colours, and not with grey, which it clips to white.

    Raises:
        BadImageError: the image is damaged, of no known format, above Pillow's limit against decompression bombs, or of
            numbers without a known range.
    """
    try:
        with Image.open(io.BytesIO(content)) as image:
            return _rgb(image)
    except (BadImageError, MemoryError):
        raise
    except Exception as error:  # each format of Pillow raises its own
        reason = re.sub(r" <_io\.BytesIO[^>]*>", "", " ".join(str(error).split()))  # names the address of the buffer
        raise BadImageError(f"{type(error).__name__}: {reason}") from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode in EIGHT_BITS:
        return image.convert("RGB")
    tags = getattr(image, "tag_v2", {})
    is_grey16 = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
    if not is_grey16 or set(tags.get(BITSPERSAMPLE, (16,))) != {16}:
        raise BadImageError(
            f"{image.format} of mode {image.mode} has no meaning as 8-bit RGB: expected 8 or 16 bits, grey or colour; "
            "convert it"
        )
    grey = (np.asarray(image) >> 8).astype(np.uint8)
    if tags.get(PHOTOMETRIC_INTERPRETATION) == 0:
        grey = 255 - grey  # white is zero
    return Image.fromarray(grey).convert("RGB")


def is_image(name: str) -> bool:
    """Whether the ending of a file's name is that of an image."""
    return os.path.splitext(name)[1].lower() in SUFFIXES


def is_left(name: str) -> bool:
    """Whether a file or folder is hidden or left by a system: .ipynb_checkpoints, ._1.jpg, __MACOSX."""
    return name.startswith(".") or name in LEFT


def readable(name: str) -> str:
    """Returns a file's name with bytes that are not UTF-8 as \\xff, for text and archives."""
    return name.encode(errors="surrogateescape").decode(errors="backslashreplace")


def files_in(folder: Path) -> Iterator[str]:
    """Yields the path of every file in a folder and its subfolders, of which each is entered once, without `is_left`.

    Links are followed, but not to a folder that was entered or that contains this one.

    Raises:
        UsageError: a subfolder cannot be read.
    """
    starts = (folder.absolute(), folder.resolve())
    entered = {os.path.realpath(path) for start in starts for path in (start, *start.parents)}

    def stop(error: OSError) -> None:
        raise UsageError(f"{error.filename} cannot be read ({error.strerror}): repair or remove it") from error

    for here, folders, files in os.walk(folder, onerror=stop, followlinks=True):
        real = {os.path.realpath(os.path.join(here, name)): name for name in sorted(folders) if not is_left(name)}
        folders[:] = [name for path, name in real.items() if path not in entered]
        entered.update(real)
        yield from (os.path.join(here, name) for name in files if not is_left(name))
