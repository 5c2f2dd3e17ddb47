"""A file in FFCV's format that grows shard by shard, and the record of its whole shards."""

import contextlib
import io
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.beton.encoding import Encoded
from infvit.run.files import atomic_write

PAGE = 8 << 20
"""Bytes of a page; FFCV's default. No image crosses the border of two pages."""

ROW = np.dtype(
    [
        ("sample", "<i8"),
        ("mode", "<u1"),
        ("width", "<u2"),
        ("height", "<u2"),
        ("start", "<u8"),
        ("size", "<u8"),
        ("digest", "V32"),
        ("bad", "?"),
    ]
)
"""The record of a written image: its place in the file, and the sha256 of the original."""


class Shards:
    """The unfinished file `part`, and beside it a folder with one small file of ROWs per whole shard.

    Args:
        part: the file.
        identity: of its content: a file that was started with another one is discarded.
        images: number of images at most, which determines the place of the first one.
    """

    def __init__(self, part: Path, identity: str, images: int) -> None:
        from ffcv.fields import IntField, RGBImageField
        from ffcv.types import FieldDescType, HeaderType, get_metadata_type

        self.part, self.folder = part, shards_of(part)
        self.fields = {"image": RGBImageField(), "label": IntField()}
        self.about = get_metadata_type(list(self.fields.values()))
        self.about_start = HeaderType.itemsize + len(self.fields) * FieldDescType.itemsize
        self.end = _next_page(self.about_start + images * self.about.itemsize)
        stored = self.folder / "identity"
        if not (stored.exists() and part.exists() and stored.read_text() == identity):
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir(parents=True)
            stored.write_text(identity)
        self._kept = [np.load(path) for path in sorted(self.folder.glob("*.npy"))]
        self.waiting: list[tuple] = []  # images written since the last whole shard
        if self._kept:
            self.end = int((self._kept[-1]["start"] + self._kept[-1]["size"]).max())

    def rows(self) -> np.ndarray:
        """Returns the (n,) of ROW of all whole shards, sorted by sample."""
        return np.sort(np.concatenate([np.empty(0, ROW), *self._kept]), order="sample")

    @contextlib.contextmanager
    def opened(self) -> Iterator[None]:
        """Opens the file, truncated to its whole shards."""
        with self.part.open("r+b" if self._kept else "w+b") as self.file:
            self.file.truncate(self.end)
            self.file.seek(self.end)
            yield

    def add(self, one: Encoded) -> None:
        """Writes an image at the end of the file."""
        if len(one.content) > -self.end % PAGE:
            start = _next_page(self.end)
            self.file.write(bytes(start - self.end))
            self.end = start
        self.file.write(one.content)
        place = (one.sample, one.mode, one.width, one.height, self.end, len(one.content))
        self.waiting.append((*place, one.digest, one.bad))
        self.end += len(one.content)

    def keep(self) -> None:
        """Makes the added images a whole shard: syncs them to disk, then records them."""
        if not self.waiting:
            return
        self.file.flush()
        os.fsync(self.file.fileno())
        path, record = self.folder / f"{len(self._kept):06}.npy", io.BytesIO()
        self._kept.append(np.array(self.waiting, ROW))
        np.save(record, self._kept[-1])
        atomic_write(path, record.getvalue())
        self.waiting = []

    def finish(self, labels: np.ndarray, rows: np.ndarray) -> None:
        """Writes the header and the tables, after which FFCV can read the file.

        Args:
            labels: of all images, (n,) int64.
            rows: (m,) of ROW of the images in the file, in their order there.
        """
        from ffcv.types import ALLOC_TABLE_TYPE, CURRENT_VERSION, TYPE_ID_HANDLER, FieldDescType, HeaderType

        kinds = {kind: number for number, kind in TYPE_ID_HANDLER.items()}
        described = np.zeros(len(self.fields), FieldDescType)
        for field, (name, handler) in zip(described, self.fields.items(), strict=True):
            field["type_id"] = kinds[type(handler)]
            field["name"][: len(name)] = np.frombuffer(name.encode(), np.uint8)
            field["arguments"][:] = handler.to_binary()[0]
        about, places = np.zeros(len(rows), self.about), np.zeros(len(rows), ALLOC_TABLE_TYPE)
        image, label = self.about.names or ("", "")
        for name in ("mode", "width", "height"):
            about[image][name] = rows[name]
        about[image]["data_ptr"], about[label] = rows["start"], labels[rows["sample"]].reshape(about[label].shape)
        places["sample_id"], places["ptr"], places["size"] = np.arange(len(rows)), rows["start"], rows["size"]
        header = np.zeros(1, HeaderType)
        header["version"], header["num_fields"], header["page_size"] = CURRENT_VERSION, len(self.fields), PAGE
        header["num_samples"], header["alloc_table_ptr"] = len(rows), self.end
        self.file.seek(self.end)
        self.file.write(places.tobytes())
        self.file.seek(0)
        self.file.write(header.tobytes() + described.tobytes() + about.tobytes())


def shards_of(part: Path) -> Path:
    """Returns the folder that records the whole shards of an unfinished file."""
    return part.with_suffix(".shards")


def _next_page(place: int) -> int:
    return -(-place // PAGE) * PAGE
