"""The files of a run's checkpoints: written whole or not at all, read without running anything of theirs."""

import hashlib
import os
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule
from torch import nn

from infvit.errors import UsageError
from infvit.run.files import tolerate_write_errors

NEWEST = "the newest checkpoint"
"""What a line calls it when it cannot be written."""

LAST = "last.ckpt"
"""A link to the newest checkpoint of a run."""

KEPT = 2
"""Checkpoints that a run keeps: the one before is for a disk that damages the newest."""

FLUSHED = 64 * 2**20
"""Bytes of a checkpoint between two flushes to the disk."""

NAME = re.compile(r"step(\d+)-([0-9a-f]{16})\.ckpt")
"""Steps of training, and the first digits of the content's sha256: file and checksum appear with one renaming."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints beside their place, flushes them to the disk, and renames them: a kill leaves the old ones.

    A disk that is full, or fails, leaves them too: a warning, once, and the run goes on.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unwritten: dict[str, str] = {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """`path` is FOLDER/stepN.ckpt; what appears is FOLDER/stepN-CHECKSUM.ckpt, and FOLDER/last.ckpt leads to it."""
        path = Path(path)
        then = f"training goes on and tries again, the ones from before stay; make room in {path.parent}"
        with tolerate_write_errors(NEWEST, then, self.unwritten):
            try:
                self._write(checkpoint, path)
            finally:
                for part in path.parent.glob("*.part"):
                    part.unlink()

    def _write(self, checkpoint: dict[str, Any], path: Path) -> None:
        folder = path.parent
        folder.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        with part.open("wb") as file:
            hashed = _Hashed(file)
            torch.save(checkpoint, cast(IO[bytes], hashed))
            file.flush()
            os.fsync(file.fileno())
        whole = folder / f"{path.stem}-{hashed.sha256.hexdigest()[:16]}.ckpt"
        part.rename(whole)
        make_last(whole)
        for old in newest_first(folder)[KEPT:]:
            old.unlink()


def make_last(path: Path) -> None:
    """Makes `LAST` lead to a checkpoint beside it."""
    link = path.with_name(f"{LAST}.part")
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.rename(path.with_name(LAST))
    _flush(path.parent)


def _checksum(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()[:16]


class _Hashed:
    """A file that is written in order, and the checksum of what was.

    It is flushed to the disk on the way: a slow one then shows that it goes on, where one flush of all at the end may
    take minutes without a sign.
    """

    def __init__(self, file: IO[bytes]) -> None:
        self.file, self.sha256, self.pending = file, hashlib.sha256(), 0

    def write(self, data: bytes) -> int:
        self.sha256.update(data)
        written = self.file.write(data)
        self.pending += written
        if self.pending >= FLUSHED:
            self.file.flush()
            os.fdatasync(self.file.fileno())
            self.pending = 0
        return written

    def flush(self) -> None:
        self.file.flush()


def _flush(folder: Path) -> None:
    """Names are on the disk once their folder is."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder, by the time of their writing."""
    found = [path for path in folder.glob("step*.ckpt") if NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.stat().st_mtime_ns, reverse=True)


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is not damaged, None if there is none at all.

    A damaged one is named in a line; UsageError if all are.
    """
    found = newest_first(folder)
    for path in found:
        try:
            read_checkpoint(path)
            return path
        except UsageError as error:
            print(f"{error}; looking for the one before", flush=True)
    if found:
        raise UsageError(f"no checkpoint in {folder} is whole: remove the folder to start anew, or restore one of them")
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint's content, nothing of it unpickled but tensors and plain values; UsageError if it is none."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"checkpoint {path} does not exist: give the path of a .ckpt file, e.g. RUN/checkpoints/last.ckpt"
        )
    named = NAME.fullmatch(path.resolve().name)
    if named:
        found = _checksum(path)
        if found != named[2]:
            raise UsageError(f"{path} is damaged (checksum {found}, expected {named[2]}): use an earlier one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises what zip, pickle or the file system raise
        raise UsageError(f"{path} is not a whole checkpoint ({type(error).__name__}): use an earlier one") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UsageError(f"{path} holds no state_dict: expected a checkpoint written by train.py")
    return content


def matching_checkpoint(path: str | None, module: LightningModule) -> str | None:
    """`path`, after making sure that its weights are this module's; UsageError naming the first that is not."""
    if path is None:
        return None
    matching_weights(path, read_checkpoint(path), module)
    return str(path)


def matching_weights(path: str, content: dict[str, Any], module: nn.Module) -> None:
    """Raises UsageError if weights of the checkpoint are not this module's, naming the first."""
    theirs, ours = content["state_dict"], module.state_dict()
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape:
            shapes = [tuple(s[name].shape) if name in s else "absent" for s in (theirs, ours)]
            raise UsageError(
                f"{path} is a checkpoint of another model: {name} is {shapes[0]} there and {shapes[1]} here; "
                "give the model=, size= and data= that it was trained with"
            )


def matching_classes(path: str, content: dict[str, Any], classes: Sequence[str], data: str) -> None:
    """Raises UsageError if the checkpoint tells another number of classes apart; says so if they have other names."""
    theirs = content.get("ImageDataModule", {}).get("classes") or classes
    ours, named = (f"{len(known):,} ({', '.join(known[:3])}, ...)" for known in (theirs, classes))
    if len(theirs) != len(classes):
        raise UsageError(f"{path} tells {ours} classes apart, data={data} has {named}: give data of the same classes")
    if list(theirs) != list(classes):
        warnings.warn(
            f"{path} was trained on classes {ours}, {data} has {named}: they are taken in order", stacklevel=2
        )
