"""Tar archives, read in place: an index of the images in a tar, also of tars in a tar.

Names of members are used as labels and titles, never as paths: nothing is unpacked.
"""

import gzip
import io
import json
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from data.datasets.image_files import SUFFIXES
from infvit.errors import UsageError
from infvit.run.files import create_once


class Member(NamedTuple):
    """An image in an archive: its full and its short name, its folder (or inner tar), and its place in bytes."""

    name: str
    short: str
    folder: str
    start: int
    size: int


def members(archive: Path, indices: Path) -> list[Member]:
    """Returns the images in an archive; their index is built once and stored in the folder `indices`.

    Raises:
        UsageError: the archive is damaged or truncated.
    """
    stat = archive.stat()
    path = indices / f"{archive.name}-{stat.st_size:x}-{stat.st_mtime_ns:x}.json"
    with create_once(path) as part:
        if part is not None:
            print(f"reading the index of {archive}", flush=True)
            with archive.open("rb") as file:
                found = tqdm(_members(file, 0, stat.st_size, archive), "index", unit=" images", file=sys.stdout)
                part.write_text(json.dumps(list(found)))
    return [Member(*member) for member in json.loads(path.read_text())]


def _members(file: io.BufferedReader, start: int, end: int, archive: Path, inside: str = "") -> Iterator[Member]:
    broken = f"{archive} is damaged or truncated{f' in {inside}' if inside else ''}: fetch it again"
    file.seek(start)
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members.clear()  # type: ignore[attr-defined]  # a million members would take gigabytes
                if member.offset_data + member.size > end:
                    raise UsageError(broken)
                if not member.isfile():
                    continue
                path = PurePosixPath(member.name)
                suffix = path.suffix.lower()
                if suffix == ".tar" and not inside:
                    stop = member.offset_data + member.size
                    yield from _members(file, member.offset_data, stop, archive, member.name)
                elif suffix in SUFFIXES and not path.name.startswith("."):
                    folder = PurePosixPath(inside).stem if inside else path.parent.name
                    name = f"{inside}/{member.name}" if inside else member.name
                    yield Member(name, path.name, folder, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UsageError(broken) from error


def unzipped(archive: Path, folder: Path) -> Path:
    """Returns the tar of a .tar.gz, unpacked once: a compressed file cannot be read from the middle.

    Raises:
        UsageError: the archive is damaged or truncated.
    """
    path = folder / archive.name.removesuffix(".gz")
    with create_once(path) as part:
        if part is not None:
            print(f"{archive.name} is compressed: unpacked once to {path}, which is deleted at the end", flush=True)
            try:
                with gzip.open(archive) as packed, part.open("wb") as file:
                    shutil.copyfileobj(packed, file, 1 << 20)
            except (EOFError, gzip.BadGzipFile, OSError) as error:
                if getattr(error, "errno", None):
                    raise
                raise UsageError(f"{archive} is damaged or truncated: fetch it again") from error
    return path
