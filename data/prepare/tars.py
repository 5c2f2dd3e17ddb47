"""Tar archives, read in place: where every member lies, also the members of tars in a tar.

Names of members are labels and titles here, never paths: nothing is unpacked.
"""

import gzip
import io
import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from data.beton.progress import ImageProgress
from data.datasets.image_files import SUFFIXES
from infvit.errors import UsageError
from infvit.run.files import create_once


class Member(NamedTuple):
    """An image in an archive: its name, the folder (or the tar) it lies in, and its place in the file, in bytes."""

    name: str
    folder: str
    start: int
    size: int

    @property
    def short(self) -> str:
        return self.name.rsplit("/", 1)[-1]


def members(archive: Path, indices: Path) -> list[Member]:
    """The images in an archive. The index is built once and kept in the folder `indices`.

    Raises:
        UsageError: the archive is damaged or cut short.
    """
    stat = archive.stat()
    path = indices / f"{archive.name}-{stat.st_size:x}-{stat.st_mtime_ns:x}.json"
    with create_once(path) as beside:
        if beside is not None:
            print(f"reading the index of {archive}", flush=True)
            beside.write_text(json.dumps(list(_watched(archive, stat.st_size))))
    return [Member(*member) for member in json.loads(path.read_text())]


def _watched(archive: Path, size: int) -> Iterator[Member]:
    with archive.open("rb") as file, ImageProgress("index", size >> 20, unit="MB") as progress:
        for member in _members(file, 0, size, archive):
            yield member
            passed = (member.start >> 20) - progress.done
            progress.advance(passed, passed << 20)


def _members(file: io.BufferedReader, start: int, end: int, archive: Path, inside: str = "") -> Iterator[Member]:
    broken = f"{archive} is damaged or cut short{f' in {inside}' if inside else ''}: fetch it again"
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                # A million members would take gigabytes.
                tar.members.clear()  # type: ignore[attr-defined]
                if member.offset_data + member.size > end:
                    raise UsageError(broken)
                if not member.isfile():
                    continue
                suffix = Path(member.name).suffix.lower()
                if suffix == ".tar" and not inside:
                    stop = member.offset_data + member.size
                    yield from _members(file, member.offset_data, stop, archive, member.name)
                elif suffix in SUFFIXES and not Path(member.name).name.startswith("."):
                    folder = Path(inside).stem if inside else Path(member.name).parent.name
                    name = f"{inside}/{member.name}" if inside else member.name
                    yield Member(name, folder, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UsageError(broken) from error


def unzipped(archive: Path, folder: Path) -> Path:
    """The tar that a .tar.gz holds, written once: what is compressed cannot be read from the middle.

    Raises:
        UsageError: the archive is damaged or cut short.
    """
    path = folder / archive.name.removesuffix(".gz")
    with create_once(path) as beside:
        if beside is not None:
            print(f"{archive.name} is compressed: unpacked once to {path}, which is deleted at the end", flush=True)
            try:
                with gzip.open(archive) as packed, beside.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            except (EOFError, gzip.BadGzipFile, OSError) as error:
                if getattr(error, "errno", None):
                    raise
                raise UsageError(f"{archive} is damaged or cut short: fetch it again") from error
    return path
