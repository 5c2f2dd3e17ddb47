"""The identity of a run's configuration: hashes, settings and variant, by which runs are matched and compared.

The functions take the composed configuration as nested mappings and sequences. One that resolves its values on access
is resolved only where it counts.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from infvit.run.code import code_hash
from infvit.run.start_weights import fingerprint, row_label

IDENTITY = ("model", "size", "recipe", "data", "trainer", "seed", "compile", "convert")
"""What the result of a run depends on, besides the code and the weights that it begins with."""

EXECUTION = {
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "timeout",
    "workers",
    "cache_dir",
    "default_root_dir",
    "eval_batch_size",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "how_to_prepare",
}
"""Keys at any depth for where and how a run is computed; they do not change what is computed."""

FREE_WITHIN_ROW = {*EXECUTION, "seed", "root", "accumulate_grad_batches"}
"""Keys that may differ within a row of the comparison; images have their fingerprint."""

UNNAMED = "imagefolder"
"""The name of data sets that only their folder identifies; named ones may be stored elsewhere the next time."""

GROUPS = ("positions=", "gamma=", "locality=", "progressive=")
VARIANTS = ("model.", "size.", "recipe.", "backbone.", "data.", "trainer.", "convert", "~", *GROUPS)
"""Beginnings of the overrides that make a variant; `size=`, `recipe=`, `data=` have fields of their own."""

DEFAULTS = ("locality=none",)
"""Values of an axis that are what a run without it has."""

FIELDS = ("model.name", "data.name", "trainer.precision", "trainer.max_epochs")
"""Overrides that have fields of their own, too."""


def config_hash(cfg: Mapping[str, Any]) -> str:
    """All that a run's result depends on: equal for the same job of a repeated sweep.

    Eight hexadecimal digits of the configuration, a dash, and eight of the code that its model and its recipe name.
    """
    without = EXECUTION if cfg["data"]["name"] == UNNAMED else {*EXECUTION, "root"}
    content = {name: _content(cfg[name], without) for name in IDENTITY if name in cfg}
    if init := cfg.get("init"):
        content["init"] = fingerprint(init)
    parts = [content.get(name) for name in ("model", "recipe", "convert")]
    names = re.findall(r'"_target_": "([^"]+)"', json.dumps(parts))
    return f"{_digest(content)}-{code_hash(['infvit.module.Classifier', *names])}"


def recipe_hash(recipe: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of all values of the recipe but its name."""
    return _digest({key: _content(recipe[key], ()) for key in recipe if key != "name"})


def settings(cfg: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of the comparison depends on, besides code and images, as {"model.attention.hops": 3}."""
    found = _flat(
        {name: _content(cfg[name], FREE_WITHIN_ROW) for name in IDENTITY if name in cfg and name not in FREE_WITHIN_ROW}
    )
    return found | ({"init": row_label(init)} if (init := cfg.get("init")) else {})


def variant(overrides: Iterable[str], init: str | None = None) -> str:
    """The overrides that change what is computed beyond choosing it by name: the axes of an ablation.

    init: weights to begin with, which are named by their row and not by their path.
    """
    plain = [override.lstrip("+") for override in overrides]
    own = [o for o in plain if o.startswith(VARIANTS) and o not in DEFAULTS and not _only_execution(o)]
    return " ".join(sorted(own + ([f"init={row_label(init)}"] if init else [])))


def _only_execution(override: str) -> bool:
    key = override.lstrip("~").partition("=")[0]
    return key in FIELDS or not FREE_WITHIN_ROW.isdisjoint(key.split("."))


def _content(node: Any, without: Collection[str]) -> Any:
    """The node as JSON holds it, without those keys; `key in node` is False for a mandatory value that is missing."""
    if isinstance(node, Mapping):
        return {str(key): _content(node[key], without) for key in node if key not in without and key in node}
    if isinstance(node, Sequence) and not isinstance(node, str):
        return [_content(value, without) for value in node]
    return node


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{key}.{name}": part for name, part in inner.items()} or {key: value}
    return flat


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
