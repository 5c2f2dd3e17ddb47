"""The checkpoint files of a run: written atomically with a checksum, and read without executing anything in them."""

import hashlib
import os
import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from torch import nn

from infvit.errors import UsageError, expect
from infvit.run.files import print_line, tolerate_write_errors

NEWEST = "the newest checkpoint"  # in messages about write errors
LAST = "last.ckpt"  # a link to it
KEPT = 2  # per run: the older one is for a disk that damages the newest

NAME = re.compile(r"step(\d+)-([0-9a-f]{16})\.ckpt")
"""Steps of training, and the first digits of the content's sha256: file and checksum appear with one renaming."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint under another name, syncs it to disk and renames it: a kill leaves the earlier ones.

    So does a disk that is full or fails: a line reports it once, and the run continues.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unwritten: dict[str, str] = {}
        self.buffers: set[str] = set()  # those of the model may hold infinities, such as masks
        self.not_finite = ""  # the weights for which the last checkpoint was not written

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | os.PathLike, storage_options: Any = None) -> None:
        """Writes FOLDER/stepN-CHECKSUM.ckpt for the path FOLDER/stepN.ckpt, and links FOLDER/last.ckpt to it.

        Weights that are not finite are not written: a line names them, and the last finite ones stay.
        """
        path = Path(path)
        before, self.not_finite = self.not_finite, self._first_not_finite(checkpoint)
        if self.not_finite:
            reason = f"{self.not_finite} is not finite, no checkpoint is written; {path.parent} keeps the last"
            if not before:
                print_line(f"{path.stem}: {reason}")
            return
        folder, part = path.parent, path.with_suffix(".part")
        consequence = f"training continues and tries again, the earlier ones stay; make room in {folder}"
        with tolerate_write_errors(NEWEST, consequence, self.unwritten):
            folder.mkdir(parents=True, exist_ok=True)
            try:
                with part.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                complete = folder / f"{path.stem}-{checksum(part)}.ckpt"
                part.rename(complete)
                link_last(complete)
                # Later steps are of a training that was given up when the run resumed from before them.
                earlier = [path for path in newest_first(folder) if step_of(path) < step_of(complete)]
                for other in {*newest_first(folder)} - {complete, *earlier[: KEPT - 1]}:
                    other.unlink()
            finally:
                for left in folder.glob("*.part"):
                    left.unlink()

    def _first_not_finite(self, checkpoint: dict[str, Any]) -> str:
        for states in (checkpoint["state_dict"], checkpoint.get("current_model_state", {})):  # averaged, and trained
            for name, tensor in states.items():
                bad = torch.isnan if name in self.buffers else lambda x: ~x.isfinite()
                if isinstance(tensor, torch.Tensor) and bad(tensor).any():
                    return str(name)
        return ""


def checksum(path: Path) -> str:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            sha256.update(block)
    return sha256.hexdigest()[:16]


def link_last(path: Path) -> None:
    """Links `LAST` to a checkpoint in the same folder, and syncs the folder, which holds the names, to disk."""
    link = path.with_name(f"{LAST}.part")
    link.unlink(missing_ok=True)
    link.symlink_to(path.name)
    link.rename(path.with_name(LAST))
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def newest_first(folder: Path) -> list[Path]:
    """The checkpoints of a folder by their steps; not by the files' times: clocks go back, and files are copied."""
    return sorted((path for path in folder.glob("step*.ckpt") if step_of(path) >= 0), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """The step of training after which a checkpoint was written, by its name; -1 for other files."""
    named = NAME.fullmatch(path.name)
    return int(named[1]) if named else -1


def newest_intact(folder: Path) -> Path | None:
    """The newest checkpoint of a folder that is not damaged, None if there are none; a line names a damaged one.

    Raises:
        UsageError: all are damaged.
    """
    for path in (found := newest_first(folder)):
        try:
            read_checkpoint(path)
            return path
        except UsageError as error:
            print(f"{error}; looking for the one before", flush=True)
    if found:
        raise UsageError(f"all checkpoints in {folder} are damaged: restore one, or remove the folder to start again")
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint's content; only tensors and plain values are unpickled.

    Raises:
        UsageError: the file is missing, damaged or not a checkpoint.
    """
    path = Path(path)
    expect(path.is_file(), f"checkpoint {path} does not exist", "a .ckpt file, e.g. RUN/checkpoints/last.ckpt")
    if named := NAME.fullmatch(path.resolve().name):
        found = checksum(path)
        if found != named[2]:
            raise UsageError(f"{path} is damaged (checksum {found}, expected {named[2]}): use an earlier one")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises what zip, pickle or the file system raise
        raise UsageError(f"{path} is not a complete checkpoint ({type(error).__name__}): use an earlier one") from error
    complete = isinstance(content, dict) and "state_dict" in content
    expect(complete, f"{path} holds no state_dict", "a checkpoint written by train.py")
    return dict(content)


def matching_weights(path: str, content: dict[str, Any], module: nn.Module) -> None:
    """Raises UsageError if names or shapes of the checkpoint's weights are not the module's, naming the first."""
    theirs, ours = content["state_dict"], module.state_dict()
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape:
            shapes = [tuple(s[name].shape) if name in s else "absent" for s in (theirs, ours)]
            raise UsageError(
                f"{path} is a checkpoint of another model: {name} is {shapes[0]} there and {shapes[1]} here; "
                "give the model=, size= and data= that it was trained with"
            )


def classes_of(path: str, content: dict[str, Any]) -> list[str]:
    """The names of a checkpoint's classes, in the order of the labels; UsageError if it has none."""
    classes = content.get("ImageDataModule", {}).get("classes")
    expect(bool(classes), f"{path} names no classes", "a checkpoint written by train.py")
    return list(classes)
