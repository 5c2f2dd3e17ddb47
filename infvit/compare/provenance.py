"""What was compared, in words: the recipes, data, hardware, versions, commits and commands of all runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from infvit.compare.comparison import Comparison

EVERY_ROW = "Every row"
"""Heading of the overrides that all rows have."""


def provenance(comparison: Comparison) -> list[tuple[str, str]]:
    """What all rows share, and the recipes, data sets, hardware, versions, commits, commands and dates of all runs.

    Pairs of a name and its different values, one a line, the most common first.
    """
    runs = comparison.runs
    dates = sorted(run.started[:16].replace("T", " ") for run in runs if run.started)
    pairs = {
        EVERY_ROW: [" ".join(comparison.shared)],
        "Recipe": [f"{run.recipe} (hash {run.recipe_hash or 'unknown'}, {run.epochs} epochs)" for run in runs],
        "Data": [f"{run.data} (fingerprint {run.data_fingerprint or 'unknown'}, {run.image_size} px)" for run in runs],
        "Hardware": [flat(run.hardware) for run in runs],
        "Versions": [flat(run.versions) for run in runs],
        "Commit": [run.git_commit or "" for run in runs],
        "Command": [run.sweep_command or run.command for run in runs],
        "Started": [" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else [],
    }
    ordered = {name: [value for value, _ in Counter(values).most_common() if value] for name, values in pairs.items()}
    return [(name, "\n".join(values)) for name, values in ordered.items() if values]


def flat(facts: Mapping[str, object]) -> str:
    """Facts in one line, without empty ones."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, "", [], {}))
