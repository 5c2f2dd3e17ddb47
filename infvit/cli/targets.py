"""What a configuration may call: `_target_` names code, and a run's folder may come from someone else."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from infvit.errors import UsageError

OURS = ("infvit.", "data.", "callbacks.")

STORED = (
    *OURS,
    "timm.data.",
    "timm.layers.",
    "timm.optim.",
    "torch.nn.",
    "torch.optim.",
    "torchmetrics.",
    "lightning.pytorch.Trainer",
    "lightning.pytorch.callbacks.",
    "lightning.pytorch.loggers.",
    "lightning.pytorch.plugins.",
    "lightning.pytorch.profilers.",
    "lightning.pytorch.strategies.",
)
"""Beginnings of what the config of a run on disk may call: what makes models, data and recipes, and loads nothing."""

HOMES = (*OURS, *(name for name in STORED if name.startswith(("timm.", "torch"))), "lightning.pytorch.")
"""Where that has to be written: infvit.module.torch.load begins well, too."""

MAKES_NODES = ("oc.decode", "oc.create")
"""Resolvers that make configuration out of text, which could not be looked at before."""


def check_targets(cfg: DictConfig) -> None:
    """Raises UsageError if a config that was composed here calls Python's own library: `os.system` makes no model."""
    for place, target in _targets(cfg):
        if _root(target) in sys.stdlib_module_names or _root(_home(target)) in sys.stdlib_module_names:
            raise UsageError(f"{place}={target} is code of Python's own library: expected a class that makes this part")


def check_stored(cfg: DictConfig, path: Path) -> None:
    """Raises UsageError if the config of a run on disk calls anything but `STORED`, under whatever name."""
    for place, target in _targets(cfg):
        found = led_to(target)
        ours = target.startswith((*OURS, "timm.optim.")) or isinstance(found, type)
        if not (ours and target.startswith(STORED) and _home(target).startswith(HOMES)):
            raise UsageError(
                f"{path} has {place}={target}, which the config of a run may not call: expected a class or function in "
                f"{', '.join(OURS)} torch, timm or lightning; is it a run that you know?"
            )


def _targets(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """(place, target) of all that would be called, and of what could hide such."""

    def walk(node: Any, place: str) -> Iterator[tuple[str, str]]:
        if isinstance(node, dict):
            for name, value in node.items():
                yield from walk(value, f"{place}.{name}" if place else str(name))
        elif isinstance(node, list):
            for index, value in enumerate(node):
                yield from walk(value, f"{place}.{index}")
        elif place.rpartition(".")[2] == "_target_" or any(name in str(node) for name in MAKES_NODES):
            yield place, " ".join(str(node).split())

    return walk(OmegaConf.to_container(cfg, resolve=False), "")


def _root(name: str) -> str:
    return name.partition(".")[0]


def led_to(target: str) -> Any:
    """What a target leads to; None if to nothing: instantiating it will say why."""
    try:
        return get_object(target)
    except Exception:  # whatever an import may raise
        return None


def _home(target: str) -> str:
    """Module and name of what a target leads to: data.datasets.image_files.os.system is posix.system.

    A method of a class is at home nowhere: some load files.
    """
    found = led_to(target)
    name = getattr(found, "__qualname__", "")
    return f"{getattr(found, '__module__', '')}.{name}" if name and "." not in name else ""
