"""Which runs are seeds of one configuration, what configurations are called, and what makes two incomparable."""

import re
from collections.abc import Iterable, Sequence
from typing import Any

from infvit.run.result import CONFIG_FIELDS, SIGNATURE, Result

WORDS = {"dim": "width", "recipe_hash": "recipe", "data_fingerprint": "data", "image_size": "resolution"}
"""What a table calls fields that runs must share to be compared."""


def group(results: Iterable[Result]) -> list[list[Result]]:
    """The runs of each configuration, in the order in which the configurations first appear."""
    results = list(results)
    known: dict[tuple[Any, ...], list[Result]] = {}
    for run in results:
        known.setdefault(run.config_key, []).append(run)
    groups: dict[tuple[Any, ...], list[Result]] = {key: [] for key in known}
    for run in results:
        groups[_group_key(run, known)].append(run)
    return [runs for runs in groups.values() if runs]


def _group_key(run: Result, known: dict[tuple[Any, ...], list[Result]]) -> tuple[Any, ...]:
    """The group of a run. One that ended before it knew its data or model joins the first group it may belong to."""
    for key, others in known.items() if run.status != "finished" else ():
        if key != run.config_key and any(_agree(run, other) for other in others):
            return key
    return run.config_key


def _agree(run: Result, other: Result, free: str = "") -> bool:
    """Whether two runs may be of one configuration, but for a field that is free: what `run` does not know agrees.

    Images without a fingerprint are those of the same folder.
    """
    names = (*CONFIG_FIELDS, "data_root", "settings")
    images = run.data_fingerprint or run.data_root == other.data_root
    return bool(images) and all(
        a == b or name in (free, "data_root") or (a in (None, "") and name not in ("variant", "code"))
        for name, a, b in zip(names, run.config_key, other.config_key, strict=True)
    )


def older_code(runs: Sequence[Result], groups: Iterable[Sequence[Result]]) -> tuple[str, ...]:
    """What marks a row that a later one repeats with other code: "older code #1a2b3c4d, not #5e6f7a8b"."""
    same = [row for row in groups if _agree(best_known(row), best_known(runs), "code")]
    newest = max((run for row in (runs, *same) for run in row), key=lambda run: run.started)
    return () if newest.code == runs[0].code else (f"older code #{runs[0].code or 'unknown'}, not #{newest.code}",)


def best_known(runs: Sequence[Result]) -> Result:
    """The run that knows most of its configuration: one that failed early may not know its data."""
    return max(runs, key=lambda run: sum(value not in (None, "") for value in run.config_key))


def shared_overrides(configs: Sequence[Result]) -> tuple[str, ...]:
    """The overrides in the variants of all configurations; a single configuration shares nothing."""
    if len(configs) < 2:
        return ()
    variants = [_overrides(config.variant) for config in configs]
    return tuple(word for word in variants[0] if all(word in words for words in variants))


def names_of(configs: Sequence[Result], shared: Sequence[str] = ()) -> list[str]:
    """A name for each configuration: its model and its overrides without shared ones.

    Where several have the same name, the fields and settings in which they differ are added.
    """
    short = []
    for config in configs:
        own = [word for word in _overrides(config.variant) if word not in shared]
        short.append(" ".join([config.model, *own]))
    names = []
    for config, name in zip(configs, short, strict=True):
        namesakes = [other for other, theirs in zip(configs, short, strict=True) if theirs == name]
        fields = _differing_fields(namesakes)
        words = [f"{field}={value}" for field in fields if (value := getattr(config, field)) not in (None, "")]
        if len(namesakes) > 1 and not config.data_fingerprint:
            words.append(f"data.root={config.data_root}")
        same = [other for other in namesakes if all(getattr(other, f) == getattr(config, f) for f in fields)]
        words += [f"{key}={_value(config.settings, key)}" for key in _differing([other.settings for other in same])]
        names.append(f"{name} ({', '.join(words)})" if words else name)
    return names


def _differing_fields(configs: Sequence[Result]) -> list[str]:
    """The fields with several known values; a hash only where the name that it belongs to does not distinguish."""
    values = {field: {getattr(config, field) for config in configs} for field in CONFIG_FIELDS}
    fields = [field for field in CONFIG_FIELDS if len(values[field] - (set() if field == "code" else {None, ""})) > 1]
    for name, digest in (("recipe", "recipe_hash"), ("data", "data_fingerprint")):
        pairs = {(getattr(config, name), getattr(config, digest)) for config in configs}
        if name in fields and len({value for value, _ in pairs}) == len(pairs):
            fields.remove(digest)
    return fields


def _differing(settings: Sequence[dict[str, Any]]) -> list[str]:
    """The keys with several values, once each: a model hands the same value on to its parts under other keys."""
    found: dict[tuple[str, ...], str] = {}
    for key in sorted(set().union(*settings), key=lambda key: (key.count("."), key)):
        values = [_value(one, key) for one in settings]
        if len(set(values)) > 1:
            found.setdefault((key.rpartition(".")[2], *values), key)
    return sorted(found.values())


def _value(settings: dict[str, Any], key: str) -> str:
    return str(settings[key]) if key in settings else "unset"


def _overrides(variant: str) -> list[str]:
    """The overrides of a variant; a value may contain spaces, so one ends where the next "name=" or "~name" begins."""
    return re.split(r" (?=~|\+*[\w./@-]+=)", variant) if variant else []


def differences(config: Result, reference: Result) -> tuple[str, ...]:
    """What keeps a configuration from being compared with the reference, in words ("depth 24, not 4").

    Settings of data and trainer follow from the fields, so they are named only where all fields agree.
    """
    fields = [name for name in SIGNATURE if getattr(config, name) != getattr(reference, name)]
    if fields:
        words = [(WORDS.get(name, name), *_described(name, config, reference)) for name in fields]
        return tuple(f"{word} {ours}, not {theirs}" for word, ours, theirs in words)
    mine, its = config.protocol, reference.protocol
    return tuple(f"{key} {_value(mine, key)}, not {_value(its, key)}" for key in _differing([mine, its]))


def _described(field: str, *configs: Result) -> list[str]:
    """The values of two configurations; hashes with their name, and in full where they begin alike."""
    values = [str(getattr(config, field) or "unknown") for config in configs]
    if field not in ("recipe_hash", "data_fingerprint"):
        return values
    short = values if len({value[:8] for value in values}) == 1 else [value[:8] for value in values]
    return [f"{getattr(config, WORDS[field])}#{value}" for config, value in zip(configs, short, strict=True)]
