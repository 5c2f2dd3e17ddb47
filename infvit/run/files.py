"""A run's files: written atomically, created once, locked; a full disk costs what could not be written, not the run."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

FULL = {errno.ENOSPC, errno.EDQUOT}

_missing: dict[str, str] = {}
_said: set[str] = set()


def begin() -> None:
    """For the next run of this process nothing is missing."""
    _missing.clear()
    _said.clear()


def reason(error: BaseException) -> str | None:
    """What the system says where writing failed; None for another error."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):  # torch's writer makes a RuntimeError of it
        cause = cause.__context__
    return None if cause is None else cause.strerror or str(cause)


@contextlib.contextmanager
def tried(what: str, then: str) -> Iterator[None]:
    """Writing `what` within may fail: the first time a line says so, and what becomes of it."""
    try:
        yield
    except (OSError, RuntimeError) as error:
        why = reason(error)
        if why is None:
            raise
        _missing[what] = why
        if what not in _said:
            _said.add(what)
            print(f"{what} cannot be written ({why}): {then}", flush=True)
    else:
        _missing.pop(what, None)


def missing() -> str | None:
    """What was not written until now, in words; None if all was."""
    whys = ", ".join(dict.fromkeys(_missing.values()))
    return f"not written, or not to the end: {', '.join(_missing)} ({whys})" if _missing else None


def failed(what: str) -> str | None:
    """Why `what` was not written, the last time it was tried; None if it was."""
    return _missing.get(what)


def full(error: OSError) -> str | None:
    """One line for a command that ends for want of room; None for another error."""
    if error.errno not in FULL:
        return None
    where = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
    return f"{where} ({error.strerror}): make room and give the same command again, a run's with resume=auto"


def atomic_write(path: Path, text: str) -> None:
    """Write the text so that a reader sees the old file or the new one whole."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def create_once(path: Path, keep_part: bool = False) -> Iterator[Path | None]:
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


_held: dict[Path, IO[str]] = {}


def _let_go() -> None:
    """A lock is shared with forked processes: one that reads images would hold it for seconds after a kill."""
    for lock in _held.values():
        lock.close()
    _held.clear()


os.register_at_fork(after_in_child=_let_go)


def hold(folder: Path) -> str | None:
    """Makes the folder this process's until it ends, however it ends, or until `release`; who has it if another has."""
    folder.mkdir(parents=True, exist_ok=True)
    release(folder)  # an earlier sweep of this process
    lock = (folder / ".lock").open("a+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        lock.close()
        return holder
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {os.uname().nodename}")
    lock.flush()
    _held[folder.resolve()] = lock
    return None


def release(folder: Path) -> None:
    """Lets go of a folder that this process holds."""
    if folder.resolve() in _held:
        _held.pop(folder.resolve()).close()
