"""Tar archives, read in place: an index of the images in a tar, also of tars in a tar.

Names of members are used as labels and titles, never as paths: nothing is unpacked.
"""

import io
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from tqdm import tqdm

from infvit.errors import UsageError
from infvit.image_file import is_image, is_left
from infvit.run.files import create_once


class Member(NamedTuple):
    """An image in an archive: its full and its short name, its inner tar, and its place in bytes."""

    name: str
    short: str
    inside: str
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
                path, stop = PurePosixPath(member.name), member.offset_data + member.size
                if stop > end:
                    raise UsageError(broken)
                if not member.isfile():
                    continue
                if path.suffix == ".tar" and not inside:
                    yield from _members(file, member.offset_data, stop, archive, member.name)
                elif is_image(path.name) and not any(is_left(part) for part in path.parts if part != ".."):
                    name = f"{inside}/{member.name}" if inside else member.name
                    yield Member(name, path.name, PurePosixPath(inside).stem, member.offset_data, member.size)
    except (tarfile.TarError, EOFError) as error:
        raise UsageError(broken) from error
