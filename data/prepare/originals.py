"""The images of a split as they were published, whatever the form, in one order: by label, then by name."""

import hashlib
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from data.beton.writer import PIECE
from data.datasets.image_files import size_and_time
from data.datasets.source import Originals
from infvit.image_file import decode, readable


class Published(Originals):
    """The images of a split. The same images have the same order, and so the same listing, in every form.

    Args:
        kind: the form, in words.
        names: of the images, within their class; equal ones stay in the order that is given, that of storage.
        labels: (n,)
        places: (n, m) int64: the place of each image, which sorts them in the order of storage.
    """

    def __init__(self, kind: str, names: list[str], labels: list[int], places: np.ndarray) -> None:
        order = sorted(range(len(names)), key=lambda i: (labels[i], names[i]))
        self.kind = kind
        self.names = [names[i] for i in order]
        self.labels = np.array(labels, dtype=np.int64)[order]
        self.places = places[order]

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return decode(self.read(index)), int(self.labels[index])

    def listing(self) -> str:
        """Returns the sha256 of names and labels, to recognise a prepared file."""
        return hashlib.sha256("\n".join(self.names).encode() + self.labels.tobytes()).hexdigest()

    def fingerprint(self) -> str:
        """Returns a hash of the places of the images, to recognise a job to resume; content is hashed on reading."""
        return hashlib.sha256((self.kind + self.listing()).encode() + self.places.tobytes()).hexdigest()

    def pieces(self) -> list[list[int]]:
        """Returns the indices in the order of storage: archives are read front to back."""
        order = np.lexsort(self.places.T[::-1]).tolist()
        return [order[start : start + PIECE] for start in range(0, len(order), PIECE)]

    def sample(self, count: int) -> list[list[int]]:
        """Returns the indices of about `count` images, evenly spread, in parts that are read together."""
        pieces = self.pieces()
        chosen = np.unique(np.linspace(0, len(pieces) - 1, min(8, len(pieces))).round().astype(int))
        return [pieces[i][: max(count // len(chosen), 1)] for i in chosen]


class Stored(NamedTuple):
    """An image in a file: the whole file, or a member of an archive that is not compressed."""

    label: int
    name: str
    """within its class"""
    file: str
    start: int = 0
    size: int = -1
    """bytes; -1 for all of the file"""
    member: str = ""


class Files(Published):
    """Images that are read in place."""

    def __init__(self, kind: str, images: Iterable[Stored]) -> None:
        self.images = sorted(one._replace(name=readable(one.name)) for one in images)
        files = {file: i for i, file in enumerate(dict.fromkeys(one.file for one in self.images))}
        stats = {file: size_and_time(Path(file)) for file in files}
        places = [(files[one.file], one.start, one.size, *stats[one.file]) for one in self.images]
        names, labels = [one.name for one in self.images], [one.label for one in self.images]
        super().__init__(kind, names, labels, np.array(places, dtype=np.int64).reshape(-1, 5))

    def read(self, index: int) -> bytes:
        one = self.images[index]
        with open(one.file, "rb") as file:
            file.seek(one.start)
            content = file.read(one.size)
        if one.size >= 0 and len(content) != one.size:
            raise OSError(f"the archive ends after {len(content):,} of its {one.size:,} bytes")
        return content

    def title(self, index: int) -> str:
        one = self.images[index]
        return f"{one.file}: {one.member}" if one.member else one.file
