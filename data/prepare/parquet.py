"""Parquet files as Hugging Face serves imagenet-1k: columns image {bytes, path} and label, names in the metadata."""

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
from pyarrow import parquet

from data.datasets.image_files import some
from data.prepare.originals import Published
from infvit.class_names import places
from infvit.errors import UsageError

SYNSET = re.compile(r"(?<![a-z0-9])n\d{8}(?!\d)")


class Rows(Published):
    """The rows of Parquet files, read one row group at a time.

    A label is a place among the names in its file's metadata, which are matched with `classes`; without names, among
    `classes`. Every image whose name contains its synset is checked against it.

    Raises:
        UsageError: files with other columns, names or labels that do not match the classes.
    """

    def __init__(self, kind: str, files: list[Path], classes: list[str]) -> None:
        self.files = files
        names: list[str] = []
        labels: list[int] = []
        where: list[tuple[int, int, int, int]] = []
        for number, file in enumerate(files):
            opened, label_of = _opened(file), _labels(file, classes)
            for group in range(opened.num_row_groups):
                table = _table(file, group, ["image.path", "label"])
                names += [path or "" for path in table["image"].combine_chunks().field("path").to_pylist()]
                given = table["label"].to_pylist()
                for row, value in enumerate(given):
                    name, means = names[row - len(given)], label_of.get(value)
                    synsets = SYNSET.findall(name)
                    if means is None or (synsets and classes[means] not in synsets):
                        raise UsageError(
                            f"{file} gives {name or 'an image'} (row {row} of group {group}) the label {value}, which "
                            f"is {'no class' if means is None else classes[means]}: expected labels in the order of "
                            f"the file's names of classes, or in ImageNet's, 0 for {classes[0]}"
                        )
                    labels.append(means)
                where += [(number, group, row, file.stat().st_mtime_ns) for row in range(len(table))]
        # Hugging Face appends the synset to the published name; without it the images sort as in the other forms.
        names = [re.sub(r"_n\d{8}(?=\.JPEG$)", "", name) or f"{i:08}" for i, name in enumerate(names)]
        super().__init__(kind, names, labels, np.array(where, dtype=np.int64).reshape(-1, 4))

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


def _labels(file: Path, classes: list[str]) -> dict[int | str, int]:
    """Returns the place in `classes` of each label of a file; a synset is a label too."""
    order: list[int | None] = list(range(len(classes)))
    by_name: dict[int | str, int] = {name: label for label, name in enumerate(classes)}
    try:
        names = json.loads(_opened(file).schema_arrow.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    except (KeyError, TypeError, ValueError):
        names = None  # it has none
    if names not in (None, [str(label) for label in order]):
        found = places(names, classes)
        unknown = [name for name, place in zip(names, found, strict=True) if place is None]
        # Where the others are in ImageNet's order, so are a few that timm writes otherwise, such as both cranes.
        ordered = len(names) == len(order) and all(place in (None, i) for i, place in enumerate(found))
        if unknown and not (ordered and len(unknown) <= len(names) // 2):
            raise UsageError(
                f"{file} names classes that are not ImageNet-1K's, or not one of them alone: {some(unknown)}; expected "
                f"synsets such as {classes[0]}, or their descriptions in timm, tench, Tinca tinca"
            )
        order = order if unknown else found
    return by_name | {label: place for label, place in enumerate(order) if place is not None}


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
