"""Files of a run: written atomically, created once, folders locked; a full disk costs a file and not the run."""

import codecs
import contextlib
import errno
import fcntl
import io
import os
import sys
from collections.abc import Iterator
from pathlib import Path

FULL = {errno.ENOSPC, errno.EDQUOT}
ASCII_SIGNS = dict(zip(map(ord, "×·✓Δ±≤→…–—−─"), ["x", ".", "v", "D", "+-", "<=", ">", "...", *"----"], strict=True))


@contextlib.contextmanager
def tolerate_write_errors(name: str, consequence: str, unwritten: dict[str, str] | None = None) -> Iterator[None]:
    """Reports that the file `name` cannot be written, and its consequence, in one line instead of raising.

    `unwritten` holds the reason for every file whose last write failed; a file in it is not reported again.
    """
    unwritten = {} if unwritten is None else unwritten
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, OSError):  # torch.save raises a RuntimeError from it
            cause = cause.__context__
        if cause is None:
            raise
        reason = cause.strerror or str(cause)
        if name not in unwritten:
            print_line(f"{name} cannot be written ({reason}): {consequence}")
        unwritten[name] = reason
    else:
        unwritten.pop(name, None)


def tolerate_any_terminal() -> None:
    """Has stdout and stderr print in ASCII what their encoding lacks: × as x, undecodable bytes of names as escapes."""
    codecs.register_error("ascii_signs", _ascii_signs)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="ascii_signs")


def _ascii_signs(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end].translate(ASCII_SIGNS)
    return text.encode("ascii", "backslashreplace").decode(), error.end


def print_line(line: str) -> None:
    """Prints a line and flushes it; dropped if stdout is a file on a full disk."""
    try:
        print(line, flush=True)
    except OSError as error:
        if error.errno not in FULL:
            raise


def disk_full_message(error: OSError) -> str | None:
    """The line for a command that fails because a disk is full; None for any other error."""
    if error.errno not in FULL:
        return None
    where = f"{error.filename} cannot be written" if error.filename else "a file cannot be written"
    return f"{where} ({error.strerror}): make room and repeat the command, that of a run with resume=auto"


def atomic_write(path: Path, content: str | bytes) -> None:
    """Writes text or bytes so that a reader sees either the old file or the complete new one."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def create_once(path: Path, keep_part: bool = False) -> Iterator[Path | None]:
    """Yields a path to write to, which is renamed to `path` on exit; yields None if `path` exists already.

    Processes that request the same file at the same time wait for the first one. An interrupted file is never mistaken
    for a complete one, because it is written under another name, synced to disk and renamed. With `keep_part` the part
    that an interrupted writer left is yielded again, for a writer that knows how far it came.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if path.exists():
            yield None
            return
        part = path.with_name(path.name + ".part")
        if not keep_part:
            part.unlink(missing_ok=True)
        yield part
        with part.open("rb") as written:
            os.fsync(written.fileno())
        part.replace(path)


class FolderInUseError(Exception):
    """Another process holds the folder's lock; the message names it."""


class FolderLock:
    """Exclusive use of a folder, created if missing, until `release` or the end of this process.

    The lock is POSIX's: forked processes do not inherit it, so that a data loader's worker that outlives a killed run
    for some seconds does not keep the folder locked.

    Raises:
        FolderInUseError: another process holds the lock.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / ".lock").open("a+")
        try:
            fcntl.lockf(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.file.seek(0)
            holder = self.file.read().strip() or "another process"
            self.file.close()
            raise FolderInUseError(holder) from error
        self.file.truncate(0)
        self.file.write(f"process {os.getpid()} on {os.uname().nodename}")
        self.file.flush()

    def release(self) -> None:
        self.file.close()
