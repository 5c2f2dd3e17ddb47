"""The images of a split as they were published, whatever the form, in one order: by label, then by name."""

import functools
import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from data.beton.writer import PIECE
from data.datasets.image_files import decode, size_and_time


class Published:
    """The images of a split. The same images have the same order, and so the same listing, in every form.

    Args:
        kind: the form, in words.
        names: of the images, within their class.
        labels: (n,) int64.
        places: (n, m) int64: the place of each image; places with an equal first column are in one file.
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

    def read(self, index: int) -> bytes:
        raise NotImplementedError

    def title(self, index: int) -> str:
        raise NotImplementedError


class Files(Published):
    """Files in a folder.

    Args:
        root: the folder.
        samples: (path relative to it, name within the class, label).
    """

    def __init__(self, kind: str, root: Path, samples: list[tuple[str, str, int]]) -> None:
        self.root = root
        found = [(path, name, label, *size_and_time(root / path)) for path, name, label in samples]
        found.sort(key=lambda sample: (sample[2], sample[1]))
        self.paths = [sample[0] for sample in found]
        places = np.array([(0, i, *sample[3:]) for i, sample in enumerate(found)], dtype=np.int64).reshape(-1, 4)
        super().__init__(kind, [sample[1] for sample in found], [sample[2] for sample in found], places)

    def read(self, index: int) -> bytes:
        """Returns the file as it is."""
        return (self.root / self.paths[index]).read_bytes()

    def title(self, index: int) -> str:
        return str(self.root / self.paths[index])


class Slices(Published):
    """Members of an archive that is not compressed, read in place.

    Args:
        archive: the file.
        members: (name in the archive, name within the class, label, start, size).
    """

    def __init__(self, kind: str, archive: Path, members: list[tuple[str, str, int, int, int]]) -> None:
        self.archive = archive
        self.members = {member[3]: member[0] for member in members}
        size, written = size_and_time(archive)
        places = np.array([(0, *member[3:], size, written) for member in members], dtype=np.int64).reshape(-1, 5)
        super().__init__(kind, [member[1] for member in members], [member[2] for member in members], places)

    def read(self, index: int) -> bytes:
        """Returns the member's bytes, without moving a file position that other processes share."""
        _, start, size, *_ = self.places[index].tolist()
        content = os.pread(_opened(self.archive), size, start)
        if len(content) != size:
            raise OSError(f"the archive ends after {len(content):,} of its {size:,} bytes")
        return content

    def title(self, index: int) -> str:
        return f"{self.archive}: {self.members[int(self.places[index][1])]}"


@functools.lru_cache(maxsize=4)
def _opened(path: Path) -> int:
    return os.open(path, os.O_RDONLY)
