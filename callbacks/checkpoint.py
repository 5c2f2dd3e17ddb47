"""Is a checkpoint whole, and is it one of this model?"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from omegaconf import DictConfig, OmegaConf

from infvit.errors import UsageError


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """The checkpoint's content, nothing of it unpickled but tensors and plain values; UsageError if it is none."""
    path = Path(path)
    if not path.is_file():
        raise UsageError(
            f"checkpoint {path} does not exist: give the path of a .ckpt file, e.g. RUN/checkpoints/last.ckpt"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises what zip, pickle or the file system raise
        raise UsageError(f"{path} is not a whole checkpoint ({type(error).__name__}): use an earlier one") from error
    if not isinstance(content, dict) or "state_dict" not in content:
        raise UsageError(f"{path} holds no state_dict: expected a checkpoint written by train.py")
    return content


def run_of(checkpoint: str | Path) -> tuple[Path, DictConfig]:
    """The folder of the run that wrote a checkpoint, and the run's composed config."""
    folders = Path(checkpoint).resolve().parents[:2]
    found = next((folder for folder in folders if (folder / ".hydra" / "config.yaml").is_file()), None)
    if not Path(checkpoint).is_file() or found is None:
        missing = "does not exist" if not Path(checkpoint).is_file() else "lies in no run folder (.hydra/config.yaml)"
        raise UsageError(f"checkpoint {checkpoint} {missing}: give a .ckpt file in the folder of its run")
    return found, cast(DictConfig, OmegaConf.load(found / ".hydra" / "config.yaml"))


def matching_checkpoint(path: str | None, module: LightningModule) -> str | None:
    """`path`, after making sure that its weights are this module's; UsageError naming the first that is not."""
    if path is None:
        return None
    theirs, ours = read_checkpoint(path)["state_dict"], module.state_dict()
    for name in [*ours, *theirs]:
        if name not in theirs or name not in ours or theirs[name].shape != ours[name].shape:
            shapes = [tuple(s[name].shape) if name in s else "absent" for s in (theirs, ours)]
            raise UsageError(
                f"{path} is a checkpoint of another model: {name} is {shapes[0]} there and {shapes[1]} here; "
                "give the model=, size= and data= that it was trained with"
            )
    return str(path)


def matching_classes(path: str, classes: Sequence[str], data: str) -> None:
    """Raises UsageError if the checkpoint tells another number of classes apart; says so if they have other names."""
    theirs = read_checkpoint(path).get("ImageDataModule", {}).get("classes") or classes
    ours, named = (f"{len(known):,} ({', '.join(known[:3])}, ...)" for known in (theirs, classes))
    if len(theirs) != len(classes):
        raise UsageError(f"{path} tells {ours} classes apart, data={data} has {named}: give data of the same classes")
    if list(theirs) != list(classes):
        warnings.warn(
            f"{path} was trained on classes {ours}, {data} has {named}: they are taken in order", stacklevel=2
        )
