"""Files that are made once and found again: written beside and renamed, by one process while the others wait."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def made_once(path: Path, keep_part: bool = False) -> Iterator[Path | None]:
    """Gives a path to write to, or None if `path` exists already; what was written becomes `path` at the end.

    Processes that want the same file at the same time wait for the first. A file that was interrupted is never
    mistaken for a whole one: it is written beside, synced to disk and renamed. With `keep_part` what an interrupted
    writer left beside is given out again, for a writer that knows how far it came.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        beside = path.with_name(path.name + ".part")
        if not keep_part:
            beside.unlink(missing_ok=True)
        yield beside
        with beside.open("rb") as written:
            os.fsync(written.fileno())
        beside.replace(path)
