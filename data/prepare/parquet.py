"""Parquet files as Hugging Face serves imagenet-1k: columns image {bytes, path} and label."""

import functools
import re
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from data.prepare.originals import Published
from infvit.errors import UsageError

SYNSET = re.compile(r"^(n\d{8})_|_(n\d{8})\.")


class Rows(Published):
    """The rows of Parquet files, read one row group at a time.

    Every name that contains its synset is checked against its label, the position of the synset in `classes`.

    Raises:
        UsageError: files with other columns, labels that do not match the classes.
    """

    def __init__(self, kind: str, files: list[Path], classes: list[str]) -> None:
        self.files = files
        names: list[str] = []
        labels: list[int] = []
        places: list[tuple[int, int, int, int]] = []
        for number, file in enumerate(files):
            opened = _opened(file)
            for group in range(opened.num_row_groups):
                table = _table(file, group, ["image.path", "label"])
                names += table["image"].combine_chunks().field("path").to_pylist()
                labels += table["label"].to_pylist()
                places += [(number, group, row, file.stat().st_mtime_ns) for row in range(len(table))]
        for name, label, place in zip(names, labels, places, strict=True):
            synset = SYNSET.search(name)
            means = classes[label] if 0 <= label < len(classes) else "no class"
            if means == "no class" or (synset and means not in synset.groups()):
                raise UsageError(
                    f"{files[place[0]]} gives {name} (row {place[2]} of group {place[1]}) the label {label}, which is "
                    f"{means}: expected labels in ImageNet's order, 0 for {classes[0]}"
                )
        # Hugging Face appends the synset to the published name; without it the images sort as in the other forms.
        names = [re.sub(r"_n\d{8}(?=\.JPEG$)", "", name) for name in names]
        super().__init__(kind, names, labels, np.array(places, dtype=np.int64).reshape(-1, 4))

    def pieces(self) -> list[list[int]]:
        """Returns the indices by row group, so that each is read once, by one process."""
        order = np.lexsort(self.places.T[::-1])
        groups = self.places[order][:, :2]
        starts = np.flatnonzero((np.diff(groups, axis=0, prepend=-1) != 0).any(axis=1))
        return [piece.tolist() for piece in np.split(order, starts[1:])]

    def read(self, index: int) -> bytes:
        file, group, row, _ = self.places[index].tolist()
        return _images(self.files[file], group)[row].as_py()

    def title(self, index: int) -> str:
        file, group, row, _ = self.places[index].tolist()
        return f"{self.files[file]}, row {row} of group {group}: {self.names[index]}"


@functools.lru_cache(maxsize=1)
def _images(file: Path, group: int) -> Any:
    return _table(file, group, ["image.bytes"])["image"].combine_chunks().field("bytes")


def _table(file: Path, group: int, columns: list[str]) -> Any:
    try:
        return _opened(file).read_row_group(group, columns=columns, use_threads=False)
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(f"{file} is damaged ({error}): fetch it again") from error


@functools.lru_cache(maxsize=2)
def _opened(file: Path) -> Any:
    try:
        opened = parquet.ParquetFile(file)
        columns = {opened.schema.column(i).path for i in range(len(opened.schema))}
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} is damaged ({error}): fetch it again") from error
    if not {"image.bytes", "image.path", "label"} <= columns:
        raise UsageError(f"{file} has the columns {sorted(columns)}: expected image.bytes, image.path and label")
    return opened
