"""The folder that `python -m data.prepare` wrote, as a source: a training machine needs no tree of images."""

import contextlib
import functools
import json
import os
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.datasets.image_files import NO_IMAGES
from data.datasets.imagefolder import ImageFolder
from data.datasets.imagenet_v2 import ImageNetV2
from data.datasets.source import Source
from infvit.errors import UsageError
from infvit.image_file import decode


def imagefolder(root: str, name: str = "imagefolder", **tree_options: Any) -> Source:
    """Returns the prepared data set in `root`, or else the tree of images there; arguments are those of ImageFolder."""
    return Prepared(root, name) if _is_prepared(root, name) else ImageFolder(root, name=name, **tree_options)


def imagenet_v2(root: str, variant: str, **tree_options: Any) -> Source:
    """Returns the prepared data set in `root`, or else the tree of images there; arguments are those of ImageNetV2."""
    name = f"imagenet_v2_{variant}"
    return Prepared(root, name) if _is_prepared(root, name) else ImageNetV2(root, variant=variant, **tree_options)


class Prepared(Source):
    """A prepared data set; without training images if none were prepared.

    Args:
        root: the folder.
        name: of the data set; its files begin with it.

    Raises:
        UsageError: a file is missing, or the splits have different classes.
    """

    def __init__(self, root: str, name: str) -> None:
        folder = Path(root).expanduser().resolve()
        if not (folder / f"{name}-val.beton").exists():
            raise UsageError(f"{folder} has no {name}-val.beton: finish python -m data.prepare, which wrote the rest")
        val = PreparedOriginals(folder / f"{name}-val.beton")
        beton = folder / f"{name}-train.beton"
        train = PreparedImages(beton) if beton.exists() else None
        if train is not None and train.about["classes"] != val.about["classes"]:
            raise UsageError(f"{beton} and {val.beton} have different classes: prepare both from one source")
        super().__init__(val.about["classes"], train or NO_IMAGES, val)


class PreparedImages:
    """The images of a .beton file: FFCV reads the file, other loaders its images one by one.

    Their fingerprint is that of the originals, whatever source they were prepared from.
    """

    def __init__(self, beton: Path) -> None:
        self.beton, self.about = beton, json.loads(_companion(beton, ".json").read_text())
        counts = {int(label): count for label, count in self.about["images_per_label"].items()}
        self.labels = np.repeat(np.array(list(counts), np.int64), list(counts.values()))  # in the order of the file

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        images, sizes = self._places
        _, width, height, start = images[index].tolist()
        with _unchanged(self.beton):
            with self.beton.open("rb") as file:
                file.seek(start)
                content = file.read(int(sizes[index]))
            raw = len(content) == width * height * 3
            image = Image.frombytes("RGB", (width, height), content) if raw else decode(content)
        return image, int(self.labels[index])

    def fingerprint(self) -> str:
        return self.about["fingerprint"]

    @functools.cached_property
    def _places(self) -> tuple[np.ndarray, np.ndarray]:
        try:
            from ffcv.reader import Reader
        except ImportError as error:
            raise UsageError(f"{self.beton} cannot be read without FFCV ({error}): pip install ffcv") from error
        reader = Reader(str(self.beton))
        table = np.sort(reader.alloc_table, order="ptr")
        images = reader.metadata[reader.metadata.dtype.names[0]]
        return images, table["size"][np.searchsorted(table["ptr"], images["data_ptr"])]


class PreparedOriginals(PreparedImages):
    """Evaluation images: a .beton file for FFCV, and beside it the originals for the exact pipeline."""

    def __init__(self, beton: Path) -> None:
        super().__init__(beton)
        self.originals = _companion(beton, ".zip")
        labels = {name: label for label, name in enumerate(self.about["classes"])}
        with zipfile.ZipFile(self.originals) as file:
            # Equal names of a class stay in the order of writing, as in data.prepare.originals.
            self.members = sorted(file.infolist(), key=lambda one: (labels[one.filename.split("/")[0]], one.filename))
        self.paths = [member.filename for member in self.members]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        content = self.read(index)
        with _unchanged(self.originals):
            return decode(content), int(self.labels[index])

    def read(self, index: int) -> bytes:
        """Returns the file of the image as it was published."""
        with _unchanged(self.originals):
            return _opened(self.originals, os.getpid()).read(self.members[index])

    def title(self, index: int) -> str:
        return f"{self.originals}: {self.paths[index]}"


def _companion(beton: Path, suffix: str) -> Path:
    path = beton.with_suffix(suffix)
    if not path.exists():
        raise UsageError(f"{path} does not exist, which belongs to {beton}: copy it there too")
    return path


@contextlib.contextmanager
def _unchanged(path: Path) -> Iterator[None]:
    """Reports errors within as a change of a file that was whole when the run started."""
    try:
        yield
    except (OSError, SyntaxError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        what = "has changed" if path.exists() else "is gone"
        raise UsageError(
            f"{path} {what} while the run reads it ({error}): copy it there again and resume with resume=auto"
        ) from error


@functools.lru_cache(maxsize=4)
def _opened(path: Path, _process: int) -> zipfile.ZipFile:
    """Returns a process's own handle: processes that share one move each other's position in the file."""
    return zipfile.ZipFile(path)


def _is_prepared(root: str, name: str) -> bool:
    return any(Path(root).expanduser().glob(f"{name}-*.beton"))
