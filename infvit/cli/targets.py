"""Which `_target_` a config may call: a run's folder may come from someone else."""

import functools
import os
import re
import sys
from collections.abc import Collection, Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from infvit.attention.registry import ATTENTIONS, GROUP
from infvit.errors import UsageError, expect

CONF = Path(__file__).parents[2] / "conf"

MAKES_RUNS = ("backbone.yaml", "data", "gamma", "model", "positions", "progressive", "recipe", "trainer")
"""What of conf/ makes models, data and recipes; nothing that it names writes files when it is called."""

LIBRARIES = re.compile(
    r"(torch\.nn|torch\.optim|torch\.optim\.lr_scheduler|timm\.layers|timm\.optim"
    r"|lightning\.pytorch\.(callbacks|plugins|profilers|strategies))\.[A-Z]\w*"
)
"""Classes of libraries, by their names alone, that the config of a stored run may name, too: they do not either."""

DECODERS = ("oc.decode", "oc.create")
"""Resolvers that turn text into config, which cannot be checked before it is resolved."""

NOT_YOURS = {"infvit", "data", "callbacks"} | sys.stdlib_module_names

NOT_MADE = ("callbacks", "logger")
"""Sections of a run's config of which a measurement makes nothing."""


def offer_attentions() -> None:
    """Makes all attentions options of the group `convert`, and those of installed packages of the group `model`.

    The packages are not imported.

    Raises:
        UsageError: if one has the name of another, or of a file in conf/model.
    """
    ours = {name: f"infvit.attention.{known.__name__}" for name, known in ATTENTIONS.items()}  # as conf/model has them
    taken = ours | {path.stem: str(path) for path in (CONF / "model").glob("*.yaml")}
    for name, target in _installed():
        if taken.setdefault(name, target) != target:
            raise UsageError(f"attention {name!r}, {target}, has the name of {taken[name]}: rename its entry point")
        attention = {"_target_": target, "_partial_": True}
        ConfigStore.instance().store(name, {"name": name, "net": "${backbone}", "attention": attention}, group="model")
    for name, target in [*ours.items(), *_installed()]:
        into = {"attention": {"_target_": target, "_partial_": True}, "blocks": None}
        ConfigStore.instance().store(name, into, group="convert")


def _installed() -> list[tuple[str, str]]:
    """(name, full name of the class) of each attention of an installed package."""
    return [(entry.name, f"{entry.module}.{entry.attr}") for entry in entry_points(group=GROUP)]


def check_targets(cfg: DictConfig) -> None:
    """Raises UsageError if the config calls Python's standard library: `os.system` does not build a model."""
    for key, target in _targets(OmegaConf.to_container(cfg, resolve=False)):
        defined_in = str(getattr(importable(target)[0], "__module__", ""))  # data.view.math.sqrt is of Python, too
        if {target.partition(".")[0], defined_in.partition(".")[0]} & sys.stdlib_module_names:
            raise UsageError(f"{key}={target} is in Python's standard library: expected a class that builds this part")


def stored_config(path: Path, trust: Collection[str] = ()) -> DictConfig:
    """The config of a stored run without `NOT_MADE`; what it names is checked as text before anything is imported.

    Args:
        path: the run's config.yaml.
        trust: packages of the user's own, whose code the config may call, too; more are in INFVIT_TRUST.

    Raises:
        UsageError: the file cannot be read, has a YAML tag, or calls something else than what makes runs.
    """
    # Trusted as conf/ is: who installs a package runs its code anyway, and its entry points name what a config builds.
    # A run can call these classes with arguments of its own, and nothing else of the package.
    installed = {target for _, target in _installed()}
    trusted = {*([trust] if isinstance(trust, str) else trust or ()), *os.environ.get("INFVIT_TRUST", "").split(",")}
    try:
        text = path.read_text(encoding="utf-8")
        content = yaml.load(text, _Loader)
        expect(isinstance(content, dict), f"{path} holds no config", "what train.py wrote: restore it from the run")
        for key, target in _targets({name: part for name, part in content.items() if name not in NOT_MADE}):
            package = target.partition(".")[0]
            known = target in _own_targets() | installed or LIBRARIES.fullmatch(target) or package in trusted - {""}
            if not known:
                yours = package.isidentifier() and package not in NOT_YOURS
                raise UsageError(
                    f"{path} has {key}={target}, which the config of a run may not call: expected what conf/ names, or "
                    "a class of torch.nn, torch.optim, timm.layers or timm.optim; is the run from someone you trust?"
                    + (f" If so, trust=[{package}] allows the code of {package}" if yours else "")
                )
        config: Any = OmegaConf.create(text)
    except (OSError, UnicodeError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read ({error}): restore it from the run") from error
    for section in NOT_MADE:
        config.pop(section, None)
    return config


class _Loader(yaml.SafeLoader):
    """A YAML tag, which would make an object, becomes a `_target_`."""


_Loader.add_multi_constructor("", lambda _loader, tag, _node: {"_target_": tag})


@functools.cache
def _own_targets() -> frozenset[str]:
    files = [path for name in MAKES_RUNS for path in (*(CONF / name).rglob("*.yaml"), CONF / name) if path.is_file()]
    return frozenset(name for path in files for name in re.findall(r"\b_target_: ([\w.]+)", path.read_text("utf-8")))


def _targets(content: Any) -> Iterator[tuple[str, str]]:
    """(key, value) of every `_target_` in nested dicts and lists, and of every value that could hide one."""
    for key, value in values(content):
        if "_target_" in key.split(".") or any(name in str(value) for name in DECODERS):
            yield key, " ".join(str(value).split())


def values(node: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    """(key, value) of every value of nested dicts and lists."""
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from values(value, f"{key}.{name}" if key else str(name))
    else:
        yield key, node


def importable(target: Any) -> tuple[Any, str]:
    """The object of that full name, which is imported, and ""; or None, and the reason in brackets."""
    try:
        return get_object(target), ""
    except Exception as error:  # whatever an import may raise; Hydra's own message has several lines
        cause = error.__cause__ or error
        return None, f" ({type(cause).__name__}: {cause})"
