"""Reads images of any size in windows: tiled TIFF and NumPy files never whole, others decoded once."""

import contextlib
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image as Pillow
from tifffile import COMPRESSION, PHOTOMETRIC, TiffFile, imwrite
from torch import Tensor
from torch.nn import functional as F

from infvit import image_file
from infvit.errors import UsageError

TILES_KEPT = 64 * 2**20
"""Bytes of decoded tiles that a TIFF caches (at least one row of tiles), since blocks of patches cut through tiles."""


class Image(Protocol):
    """An RGB image that is read in windows."""

    height: int
    width: int

    def read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        """Rows [top, bottom), columns [left, right): uint8 (3, bottom - top, right - left)."""


class InMemory:
    """An image in memory: uint8 (3, height, width)."""

    def __init__(self, pixels: Tensor) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[-2:]

    def read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        return self.pixels[:, top:bottom, left:right]


class NumpyFile:
    """A .npy file of uint8 (height, width, 3), mapped again for each window so that its pages do not stay in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            array = np.load(path, mmap_mode="r")
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read ({error}): expected a .npy file") from error
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise UsageError(f"{path} holds {array.dtype} of shape {array.shape}, expected uint8 (height, width, 3)")
        self.height, self.width = array.shape[:2]

    def read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        window = np.load(self.path, mmap_mode="r")[top:bottom, left:right]
        return torch.from_numpy(window.transpose(2, 0, 1).copy())


class TiffTiles:
    """A TIFF's first page, decoded a tile (or strip) at a time; at least one row of tiles is cached.

    Raises:
        ValueError: the page's numbers are not the pixels that Pillow decodes, or cannot be decoded here.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = TiffFile(path)
        page: Any = self.file.pages.first
        colours = {PHOTOMETRIC.MINISBLACK, PHOTOMETRIC.RGB}
        if page.compression == COMPRESSION.JPEG:
            colours.add(PHOTOMETRIC.YCBCR)  # which the codec converts
        layout = page.planarconfig == 1 and page.tags.valueof("Orientation", 1) == 1 and page.shape[2:] in ((), (3,))
        if not layout or page.dtype != np.uint8 or page.bitspersample != 8 or page.photometric not in colours:
            raise ValueError("expected 8 bits, grey or RGB, channels together, upright")
        self.page = page
        self.height, self.width = page.shape[:2]
        self.tile_height, self.tile_width = page.chunks[:2]
        self.across = -(-self.width // self.tile_width)
        size = self.tile_height * self.tile_width * 3
        self.tile = lru_cache(max(self.across, TILES_KEPT // size))(self._decoded)
        self.tile(0, 0)  # fails here if the codec is missing, which Pillow may have

    def read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        out = np.empty((bottom - top, right - left, 3), np.uint8)
        high, wide = self.tile_height, self.tile_width
        for i in range(top // high, -(-bottom // high)):
            for j in range(left // wide, -(-right // wide)):
                a, b = max(top, i * high), min(bottom, (i + 1) * high)
                c, d = max(left, j * wide), min(right, (j + 1) * wide)
                tile = self.tile(i, j)
                out[a - top : b - top, c - left : d - left] = tile[
                    a - i * high : b - i * high, c - j * wide : d - j * wide
                ]
        return torch.from_numpy(out.transpose(2, 0, 1).copy())

    def _decoded(self, i: int, j: int) -> np.ndarray:
        index = i * self.across + j
        try:
            handle = self.file.filehandle
            handle.seek(self.page.dataoffsets[index])
            data = handle.read(self.page.databytecounts[index])
            segment, _, _ = self.page.decode(data, index, jpegtables=self.page.jpegtables)
            assert segment is not None, "it is empty"
        except Exception as error:  # each codec raises its own
            raise UsageError(
                f"{self.path}: the tile in row {i}, column {j} (of {self.tile_height} × {self.tile_width} pixels) "
                f"cannot be read ({error}): write the file again, or install imagecodecs if a codec is missing"
            ) from error
        return np.broadcast_to(segment[0], (*segment.shape[1:3], 3))


class Padded:
    """An image padded with black below and to the right, so that its sides are multiples of a patch."""

    def __init__(self, image: Image, multiple: int) -> None:
        self.image = image
        self.height, self.width = (-(-side // multiple) * multiple for side in (image.height, image.width))

    def read(self, top: int, bottom: int, left: int, right: int) -> Tensor:
        inside = self.image.read(top, min(bottom, self.image.height), left, min(right, self.image.width))
        missing = (0, right - left - inside.shape[2], 0, bottom - top - inside.shape[1])
        return F.pad(inside, missing)


def open_image(path: str | Path, allow_huge: bool = False) -> Image:
    """Opens an image file to be read in windows.

    Args:
        path: .npy and TIFF of 8-bit grey or RGB are read in windows; other images (JPEG, PNG, ...) are decoded whole.
        allow_huge: also decode images larger than Pillow's limit against decompression bombs.

    Raises:
        UsageError: if the file does not exist, is not an image, or is larger than that limit.
    """
    path = Path(path)
    if not path.is_file():
        raise UsageError(f"image {path} does not exist: give the path of an image file")
    if path.suffix.lower() == ".npy":
        return NumpyFile(path)
    if path.suffix.lower() in (".tif", ".tiff"):
        with contextlib.suppress(Exception):  # tifffile raises many types; Pillow reads the file, or says what it is
            return TiffTiles(path)
    return InMemory(decode(path, allow_huge))


def decode(path: Path, allow_huge: bool = False) -> Tensor:
    """A whole image: uint8 (3, height, width). Raises as `open_image`."""
    limit = Pillow.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Pillow.DecompressionBombWarning)
            Pillow.MAX_IMAGE_PIXELS = None if allow_huge else limit
            return torch.from_numpy(np.array(image_file.decode(path.read_bytes()))).permute(2, 0, 1)
    except (OSError, image_file.BadImageError) as error:
        if isinstance(error.__cause__, Pillow.DecompressionBombWarning | Pillow.DecompressionBombError):
            raise UsageError(
                f"{path} has more than {limit:,} pixels, Pillow's limit against decompression bombs: if you trust the "
                "file, set allow_huge=true"
            ) from error
        raise UsageError(f"{path} cannot be read as an image ({error}): replace the file") from error
    finally:
        Pillow.MAX_IMAGE_PIXELS = limit


def write_test_image(path: Path, height: int, width: int, tile: int = 512) -> None:
    """Writes an uncompressed tiled TIFF of gradients and noise, a tile at a time, of any size."""
    rng = np.random.default_rng(0)

    def tiles() -> Iterator[np.ndarray]:
        noise = rng.integers(0, 128, (tile, tile, 3), dtype=np.uint8)
        for top in range(0, height, tile):
            for left in range(0, width, tile):
                shade = np.array([top / height, left / width, 0.5]) * 127
                yield np.roll(noise, int(rng.integers(tile)), axis=1) + shade.astype(np.uint8)

    imwrite(path, tiles(), shape=(height, width, 3), dtype=np.uint8, tile=(tile, tile), photometric="rgb")
