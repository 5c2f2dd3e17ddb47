"""Which runs are seeds of one configuration, what the configurations are called, and what keeps two apart."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from infvit.run.result import CONFIG_FIELDS, SIGNATURE, Result


def group(results: Iterable[Result]) -> list[list[Result]]:
    """The runs of each configuration, in the order in which the configurations first appear."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    results = list(results)
    for run in results:
        groups.setdefault(run.config_key, [])
    for run in results:
        groups[_home(run, list(groups))].append(run)
    return [runs for runs in groups.values() if runs]


def best_known(runs: Sequence[Result]) -> Result:
    """The run that knows most of its configuration: one that failed early may not know its data."""
    return max(runs, key=lambda run: sum(value not in (None, "") for value in run.config_key))


def shared_overrides(configs: Sequence[Result]) -> tuple[str, ...]:
    """The overrides in the variants of all configurations: they tell none from another. One alone shares nothing."""
    if len(configs) < 2:
        return ()
    variants = [_overrides(config.variant) for config in configs]
    return tuple(word for word in variants[0] if all(word in words for words in variants))


def names_of(configs: Sequence[Result], shared: Sequence[str] = ()) -> list[str]:
    """A name for each configuration: its model and its overrides but those that all share.

    Where several have one name, what tells them apart is added.
    """
    plain = []
    for config in configs:
        own = [word for word in _overrides(config.variant) if word not in shared]
        plain.append(" ".join([config.model, *own]))
    names = []
    for config, name in zip(configs, plain, strict=True):
        alike = [other for other, theirs in zip(configs, plain, strict=True) if theirs == name]
        telling = [field for field in CONFIG_FIELDS if len({getattr(other, field) for other in alike}) > 1]
        for named, digest in (("recipe", "recipe_hash"), ("data", "data_fingerprint")):
            pairs = {(getattr(other, named), getattr(other, digest)) for other in alike}
            if named in telling and len({first for first, _ in pairs}) == len(pairs):
                telling.remove(digest)
        words = [f"{field}={getattr(config, field)}" for field in telling]
        same = [other for other in alike if all(getattr(other, f) == getattr(config, f) for f in telling)]
        words += _settings_that_tell(config, same)
        names.append(f"{name} ({', '.join(words)})" if words else name)
    return names


def _settings_that_tell(config: Result, others: Sequence[Result]) -> list[str]:
    """Words for the settings in which a configuration differs from others that are alike in all fields."""
    if config.settings:
        kept = [other.settings for other in others if other.settings]
        return [f"{key}={_value(config.settings, key)}" for key in _differing(kept)]
    return ["settings unknown"] if any(other.settings for other in others) else []


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys with several values, once each: what a model hands on to its parts is the same again."""
    told: dict[tuple[str, ...], str] = {}
    for key in sorted(set().union(*settings), key=lambda key: (key.count("."), key)):
        values = [_value(one, key) for one in settings]
        if len(set(values)) > 1:
            told.setdefault((key.rpartition(".")[2], *values), key)
    return sorted(told.values())


def _value(settings: dict[str, Any], key: str) -> str:
    return str(settings[key]) if key in settings else "unset"


def _overrides(variant: str) -> list[str]:
    """The overrides of a variant; a value may hold spaces, so one ends where the next "name=" or "~name" begins."""
    return re.split(r" (?=~|\+*[\w./@-]+=)", variant) if variant else []


def differences(config: Result, reference: Result) -> tuple[str, ...]:
    """What keeps a configuration from being compared with the reference, in words ("depth 24, not 4")."""
    ours, theirs = _described(config, reference), _described(reference, config)
    fields = tuple(
        f"{ours[name]}, not {theirs[name].partition(' ')[2]}"
        for name in SIGNATURE
        if getattr(config, name) != getattr(reference, name)
    )
    if fields or config.protocol == reference.protocol:
        return fields  # which the settings of data and trainer follow
    mine, its = config.protocol, reference.protocol
    if not mine or not its:
        return ("settings unknown" if its else "settings known, not unknown",)
    return tuple(f"{name} {_value(mine, name)}, not {_value(its, name)}" for name in _differing([mine, its]))


def _described(config: Result, other: Result) -> dict[str, str]:
    recipe = _short(config.recipe_hash, other.recipe_hash)
    data = _short(config.data_fingerprint, other.data_fingerprint)
    return {
        "depth": f"depth {config.depth}",
        "dim": f"width {config.dim}",
        "recipe_hash": f"recipe {config.recipe}#{recipe}",
        "data_fingerprint": f"data {config.data}#{data}",
        "patch": f"patch {config.patch}",
        "image_size": f"resolution {config.image_size}",
        "epochs": f"epochs {config.epochs}",
        "loader": f"loader {config.loader or 'unknown'}",
    }


def _short(digest: str, other: str = "") -> str:
    return digest if digest[:8] == other[:8] else digest[:8] or "unknown"


def _home(run: Result, keys: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The group of a run. One that ended before it knew its data or model joins the first group it may belong to."""
    own = run.config_key
    names = (*CONFIG_FIELDS, "settings")
    open_ends = [value in (None, "") and name != "variant" for name, value in zip(names, own, strict=True)]
    if run.status == "finished" or not any(open_ends):
        return own
    for key in keys:
        if key != own and all(o or mine == its for o, mine, its in zip(open_ends, own, key, strict=True)):
            return key
    return own
