"""A disk that is full or fails costs what could not be written there, not the run: said once, and again at its end."""

import contextlib
import errno
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from callbacks.complaints import complaint

FULL = {errno.ENOSPC, errno.EDQUOT}

ROOM = 2**20
"""Bytes without which no run begins: its configuration, and its first result."""

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


class Room(Callback):
    """Refuses a command whose folder has no room, before Hydra leaves half a configuration there.

    Exceptions of Hydra's callbacks become warnings, so the refusal is an exit.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        hydra = HydraConfig.instance()
        before = hydra.cfg
        hydra.set_config(config)  # Hydra does so behind this, and the folder's name may ask for it
        try:
            folder = Path(config.hydra.run.dir)
        except OmegaConfBaseException as error:  # Hydra would ask once more, and the answer may take minutes
            print(f"error: {complaint(error)}", file=sys.stderr)
            sys.exit(2)
        finally:
            hydra.cfg = before
        self._refuse(folder)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._refuse(Path(config.hydra.sweep.dir))

    def _refuse(self, folder: Path) -> None:
        existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
        try:
            with tempfile.TemporaryFile(dir=existing) as file:  # what is free says nothing of a quota
                file.write(bytes(ROOM))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            print(
                f"error: {folder} cannot be written ({error.strerror}): make room in {existing}, or give another "
                "folder",
                file=sys.stderr,
            )
            sys.exit(2)


class Output:
    """The terminal or a log file: what cannot be written there is dropped, and the run goes on."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        with _unless_closed():
            self.stream.write(text)
        return len(text)

    def flush(self) -> None:
        with _unless_closed():
            self.stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextlib.contextmanager
def _unless_closed() -> Iterator[None]:
    """What a reader such as `head` closed ends the command, as elsewhere."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError:
        pass


@contextlib.contextmanager
def output_may_fail() -> Iterator[None]:
    """Within, a log file without room is no error."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Output, streams)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
