"""Which `_target_` a config may call: a run's folder may come from someone else."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from infvit.errors import UsageError

OURS = ("infvit.", "data.", "callbacks.")

TRUSTED = (
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
"""Prefixes of what the config of a stored run may call: what builds models, data and recipes, and loads no files."""

DEFINED_IN = (*TRUSTED, "lightning.pytorch.")
"""Prefixes of where the object must be defined: infvit.module.torch.load has a trusted name, too."""

DECODERS = ("oc.decode", "oc.create")
"""Resolvers that turn text into config, which cannot be checked before it is resolved."""


def check_targets(cfg: DictConfig) -> None:
    """Raises UsageError if the config calls Python's standard library: `os.system` does not build a model."""
    for key, target in _targets(cfg):
        if {target.partition(".")[0], _definition(target).partition(".")[0]} & sys.stdlib_module_names:
            raise UsageError(f"{key}={target} is in Python's standard library: expected a class that builds this part")


def check_stored_targets(cfg: DictConfig, path: Path) -> None:
    """Raises UsageError if the config of a stored run calls anything but `TRUSTED`; imports nothing else either."""
    for key, target in _targets(cfg):
        if not (target.startswith(TRUSTED) and _is_trusted(target)):
            raise UsageError(
                f"{path} has {key}={target}, which the config of a run may not call: expected a class or function in "
                f"{', '.join(OURS)} torch, timm or lightning; is the run from someone you trust?"
            )


def _is_trusted(target: str) -> bool:
    """Of the libraries only classes and timm's optimizers are trusted; some of their functions load files."""
    allowed = target.startswith((*OURS, "timm.optim.")) or isinstance(find_object(target), type)
    return allowed and _definition(target).startswith(DEFINED_IN)


def _targets(cfg: DictConfig) -> Iterator[tuple[str, str]]:
    """(key, value) of every `_target_`, and of every value that could hide one."""
    for key, value in values(OmegaConf.to_container(cfg, resolve=False)):
        if key.rpartition(".")[2] == "_target_" or any(name in str(value) for name in DECODERS):
            yield key, " ".join(str(value).split())


def values(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every value of nested dicts and lists."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from values(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def find_object(target: str) -> Any:
    """The object of that full name, which is imported; None if there is none, which instantiating it reports."""
    try:
        return get_object(target)
    except Exception:  # whatever an import may raise
        return None


def _definition(target: str) -> str:
    """The module and name under which the object is defined: data.datasets.image_files.os.system is posix.system.

    Empty for a method of a class, some of which load files.
    """
    found = find_object(target)
    name = getattr(found, "__qualname__", "")
    return f"{getattr(found, '__module__', '')}.{name}" if name and "." not in name else ""
