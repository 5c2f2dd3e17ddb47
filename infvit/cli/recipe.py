"""The recipe of a config: its optimization goes to the Classifier, its sections are read by other config groups."""

import inspect
import json
import re
from collections.abc import Sequence
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from infvit.cli.validation import check_call
from infvit.errors import UsageError
from infvit.module import Classifier

REFERENCE = re.compile(r"\brecipe\.([\w.]+)")


def optimization(recipe: DictConfig, net: nn.Module) -> dict[str, Any]:
    """Returns the Classifier's arguments among the keys of a recipe, instantiated.

    Raises:
        UsageError: a value that the Classifier refuses, or an average of the buffers of an attention that forbids it.
    """
    fixed = [m for m in net.modules() if not getattr(m, "buffers_may_be_averaged", True)]
    if fixed and recipe.ema and recipe.ema.get("use_buffers", True):
        raise UsageError(
            f"recipe.ema averages buffers too, and with them those of {type(fixed[0]).__name__}, whose mean over "
            "steps is not usable (the mean of two draws of random directions is not a draw): "
            "add use_buffers: false to it, which takes the last ones"
        )
    values = {name: recipe[name] for name in inspect.signature(Classifier).parameters if name in recipe}
    made = {k: instantiate(v, _convert_="all") if OmegaConf.is_config(v) else v for k, v in values.items()}
    check_call(Classifier, made, "recipe.{}".format)
    return made


def check_recipe(cfg: DictConfig, overrides: Sequence[str]) -> None:
    """Raises UsageError for a key of the recipe that nothing reads: it would change the recipe's hash and no result.

    A key is read if the Classifier has an argument of its name or another config group refers to `${recipe.KEY}`. The
    section `recipe.model` is written for conf/backbone.yaml; another model, such as a whole one of timm, reads part of
    it, and the rest cannot be overridden with that model.

    Args:
        cfg: the composed config.
        overrides: of the command line.
    """
    raw: Any = OmegaConf.to_container(cfg, resolve=False)
    recipe, net = raw.pop("recipe"), raw["model"]["net"]
    known = {"name", *inspect.signature(Classifier).parameters, *REFERENCE.findall(json.dumps(raw, default=str))}
    for key in _keys(recipe):
        if key not in known:
            section, _, name = key.rpartition(".")
            siblings = [k.rpartition(".")[2] for k in sorted(known) if k.rpartition(".")[0] == section]
            raise UsageError(f"nothing reads recipe.{key}: expected {', '.join(siblings)}; leave out {name}")
    if net == "${backbone}":
        return
    raw.pop("backbone")
    read = REFERENCE.findall(json.dumps(raw, default=str))
    changed = [override.lstrip("+~").partition("=")[0] for override in overrides]
    for key in (f"model.{name}" for name in recipe["model"]):
        group = key.rpartition(".")[2]
        if key not in read and any(name == group or f"{name}.".startswith(f"recipe.{key}.") for name in changed):
            raise UsageError(
                f"model={cfg.model.name} does not read recipe.{key}, it has its own: leave out {group}, or take a "
                "model of conf/backbone.yaml"
            )


def _keys(recipe: dict[str, Any]) -> list[str]:
    """Returns the keys of a recipe and of its sections, which are groups of keys and not objects."""
    keys = []
    for name, value in recipe.items():
        section = isinstance(value, dict) and "_target_" not in value
        keys += [f"{name}.{key}" for key in value] if section else [name]
    return keys
