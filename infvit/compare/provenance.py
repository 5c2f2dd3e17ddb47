"""What was compared, in words: recipes, data, hardware, versions, commits and commands of all runs."""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence

from infvit.compare.table import Comparison

EVERY_ROW = "Every row"
"""What stands before the overrides that all rows have."""


def subject(comparison: Comparison) -> list[tuple[str, str]]:
    """What was compared: what all rows share, the recipes, data sets, hardware, versions, commands and dates."""
    runs = comparison.runs
    pairs = {
        EVERY_ROW: [" ".join(comparison.shared)] if comparison.shared else [],
        "Recipe": [f"{run.recipe} (hash {run.recipe_hash or 'unknown'}, {run.epochs} epochs)" for run in runs],
        "Data": [f"{run.data} (fingerprint {run.data_fingerprint or 'unknown'}, {run.image_size} px)" for run in runs],
        "Hardware": [flat(hardware) for hardware in comparison.distinct("hardware")],
        "Versions": [flat(versions) for versions in comparison.distinct("versions")],
        "Commit": comparison.distinct("git_commit"),
        "Command": commands(comparison.distinct("command")),
    }
    dates = sorted(run.started[:16].replace("T", " ") for run in runs if run.started)
    if dates:
        pairs["Started"] = [dates[0] if dates[0] == dates[-1] else f"{dates[0]} to {dates[-1]}"]
    # The most common first.
    ordered = {name: [value for value, _ in Counter(values).most_common()] for name, values in pairs.items()}
    return [(name, "\n".join(values)) for name, values in ordered.items() if values]


def commands(single: Sequence[str]) -> list[str]:
    """The commands of single jobs as the sweeps that run the same: "model=a seed=0", "model=a seed=1" → "seed=0,1".

    Commands that set the same names become one where they are all combinations of their values; what is left differs
    in more than the seed and stays apart.
    """
    return [line for alike in _by(single, values=False) for line in _joined(alike)]


def _joined(alike: list[list[str]]) -> list[str]:
    values = [list(dict.fromkeys(words)) for words in zip(*alike, strict=True)]
    if math.prod(map(len, values)) == len(alike):
        return [_sweep(values)]
    lines = []
    for only_seeds in _by([shlex.join(words) for words in alike], values=True):
        lines.append(_sweep([list(dict.fromkeys(words)) for words in zip(*only_seeds, strict=True)]))
    return lines


def _by(lines: Sequence[str], values: bool) -> list[list[list[str]]]:
    """The commands as words, grouped by the names they set; with `values`, by all values too but the seed's."""
    groups: dict[tuple[str, ...], list[list[str]]] = {}
    for line in lines:
        try:
            words = shlex.split(line)
        except ValueError:
            words = [line]
        key = tuple(word if values and not word.startswith("seed=") else word.partition("=")[0] for word in words)
        groups.setdefault(key, []).append(words)
    return list(groups.values())


def _sweep(values: list[list[str]]) -> str:
    words = [first if not rest else f"{first},{','.join(w.partition('=')[2] for w in rest)}" for first, *rest in values]
    if any(len(words) > 1 for words in values) and words[1:2] == ["train.py"]:
        words.insert(2, "-m")
    return shlex.join(words)


def flat(facts: Mapping[str, object]) -> str:
    """Facts in one line, what is empty left out."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, "", [], {}))
