"""The recipe of a config: its optimization goes to the Classifier, its sections are read by other config groups."""

import inspect
import re
from collections.abc import Iterable
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from timm.optim import get_optimizer_info, list_optimizers
from torch import nn

from infvit.cli.targets import values
from infvit.cli.validation import check_call
from infvit.errors import UsageError
from infvit.module import Classifier

REFERENCE = re.compile(r"\$\{(?:oc\.(?:select|dict\.keys|dict\.values):)? *([\w.]+) *(?=[},])")
"""The key in `${size.depth}` and in `${oc.select:model.depth,null}`."""

SET_BY_RUN = {
    "recipe.optimizer.lr": "recipe.base_lr",
    "recipe.schedule.warmup": "recipe.warmup_epochs",
    "recipe.schedule.total": "recipe.epochs",
    "recipe.mixup.num_classes": "data=",
    "model.net.num_classes": "data=",
    "model.attention.num_heads": "size.heads",
    "trainer.callbacks": "+callbacks.NAME",
    "trainer.logger": "logger=",
}
"""Arguments that a run gives by itself, over those of its config, and the setting that they follow."""


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
    if recipe.optimizer.get("layer_decay") is not None and not hasattr(net, "group_matcher"):
        raise UsageError(f"recipe.optimizer.layer_decay needs the order of layers, and {type(net).__name__} names none")
    given = {name: recipe[name] for name in inspect.signature(Classifier).parameters if name in recipe}
    made = {k: instantiate(v, _convert_="all") if OmegaConf.is_config(v) else v for k, v in given.items()}
    check_call(Classifier, made, "recipe.{}".format)
    return made


def check_values(cfg: DictConfig) -> None:
    """Raises UsageError for values of a recipe that are out of range: makes all of a run but images and weights."""
    net = nn.Identity()
    net.group_matcher = None  # type: ignore[assignment]  # of every net that layer_decay fits
    made = optimization(cfg.recipe, net)
    mixup, *_ = (made.pop(name, None) for name in ("mixup", "freeze", "train_only"))  # the last two need the model
    Classifier(net, 2, **made)
    for part in ("view", "augment", "erasing", "progressive"):
        instantiate(cfg.data.module.get(part), _convert_="all")
    try:
        if mixup is not None:  # timm validates its settings when it mixes
            mixup(num_classes=2)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 0]))
    except Exception as error:
        raise UsageError(f"recipe.mixup cannot mix with its settings: {error}") from error


def check_read(cfg: DictConfig, hydra: Any, *read: str) -> None:
    """Raises UsageError for a setting without effect: it would change the hash of a run and nothing else.

    That is a key that the command line sets and nothing in this run reads, a key of the recipe that no run reads, and
    one that the run sets itself. A key is read if it is, or is within, what `read` names, or what a `${KEY}` refers to
    in something that is read; of a recipe, the Classifier reads its arguments. So a whole model of timm does not read
    what is written for conf/backbone.yaml.

    Args:
        cfg: as composed.
        hydra: its part for Hydra.
        read: keys that are instantiated, or that code reads.
    """
    raw: Any = {"hydra": OmegaConf.to_container(hydra, resolve=False)}
    raw |= OmegaConf.to_container(cfg, resolve=False)
    classifier = [f"recipe.{name}" for name in ("name", *inspect.signature(Classifier).parameters)]
    by_any_run = _read(raw, [*(key for key in raw if key != "recipe"), *classifier])
    by_this_run = _read(raw, [*read, *classifier, "hydra"])
    given = [(f"recipe.{key}", by_any_run) for key in _keys(raw.get("recipe", {}))]
    options: dict[str, str] = {}
    for override in OverridesParser.create().parse_overrides(list(hydra.overrides.task)):
        key, value = override.key_or_group, override.value()
        if key in hydra.runtime.choices and not isinstance(value, dict):
            option = hydra.runtime.choices[key]
            section = _package(f"{key}/{option}") or "hydra"
            options[section] = f"{key}={option}"
            key, value = section, None
        if not override.is_delete() and override.package is None:
            given += [(leaf, by_this_run) for leaf, _ in values(value, key)]
    for key, known in given:
        if not any(f"{key}.".startswith(f"{one}.") or one.startswith(f"{key}.") for one in known):
            above, _, name = key.rpartition(".")
            siblings = sorted(one.rpartition(".")[2] for one in known if one.rpartition(".")[0] == above and above)
            expected = f"expected {', '.join(siblings)}; " if siblings else ""
            by = f" with model={cfg.model.name}" if known is by_this_run and "recipe" in raw else ""
            raise UsageError(f"nothing reads {key}{by}: {expected}leave out {options.get(key, name)}")
        opt = str(OmegaConf.select(cfg, "recipe.optimizer.opt")).lower().rpartition("_")[2]
        taken = get_optimizer_info(opt) if opt in list_optimizers() else None
        if key.startswith("recipe.optimizer.") and not getattr(taken, f"has_{key.split('.')[2]}", True):
            raise UsageError(f"{key} has no effect on {opt}: leave it out")
    for key, instead in SET_BY_RUN.items() if "recipe" in raw else ():
        if OmegaConf.select(cfg, key) is not None:
            raise UsageError(f"{key} has no effect, the run sets it: leave it out, and give {instead}")


def _package(option: str) -> str | None:
    """The section that an option of a group is in, such as recipe.model.positions for positions/std0.02."""
    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.is_config(option):
            package = source.load_config(option).header.get("package") or option.rpartition("/")[0].replace("/", ".")
            return None if package == "_global_" else package
    return None


def _read(raw: dict[str, Any], keys: Iterable[str]) -> set[str]:
    """The keys and all that `${KEY}` in them, and in what these refer to, names."""
    read: set[str] = set()
    waiting = list(keys)
    while waiting:
        if (key := waiting.pop()) in read:
            continue
        read.add(key)
        node: Any = raw
        for part in key.split("."):
            node = node.get(part) if isinstance(node, dict) else node  # text there refers to a section
        for place, value in values(node, key):
            for name in REFERENCE.findall(str(value)):
                inner = name.lstrip(".")
                above = place.split(".")[: len(inner) - len(name)] if inner != name else []
                waiting.append(".".join([*above, inner]))
    return read


def _keys(recipe: dict[str, Any]) -> list[str]:
    """Returns the keys of a recipe and of its sections, which are groups of keys and not objects."""
    keys = []
    for name, value in recipe.items():
        section = isinstance(value, dict) and "_target_" not in value
        keys += [f"{name}.{key}" for key in value] if section else [name]
    return keys
