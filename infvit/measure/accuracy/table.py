"""The accuracy measurement for a terminal of 80 columns, and its classes as CSV."""

import textwrap
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from infvit.class_names import is_imagenet, readable_names
from infvit.measure.accuracy.scores import Classes
from infvit.tables.numbers import signed
from infvit.tables.table import WIDTH, Column, Table, to_csv

SCORES = {
    "top1": ("top-1 %", 100, 2),
    "top5": ("top-5 %", 100, 2),
    "loss": ("loss", 1, 3),
    "ece": ("ECE %", 100, 2),
    "real_top1": ("ReaL %", 100, 2),
}
"""Heading, factor and decimals."""
SHOWN = 3
"""How many of the best and of the worst classes."""


def scores(rows: Sequence[dict[str, Any]]) -> str:
    """The scores of each model by each pipeline, and below them their intervals."""
    columns: list[Column[dict[str, Any]]] = [Column("", lambda row: row.get("pipeline", row["name"]), left=True)]
    columns += [Column(heading, partial(_score, name=name), optional=True) for name, (heading, *_) in SCORES.items()]
    lines: list[dict[str, Any]] = []
    for row in rows:
        if not lines or lines[-1]["name"] != row["name"]:
            lines.append({"name": row["name"]})
        lines.append(row | {"pipeline": f"  {row['pipeline']}"})
    return Table(columns, lines).text()


def _score(row: dict[str, Any], name: str) -> str | None:
    _, factor, decimals = SCORES[name]
    if "pipeline" not in row:
        return ""
    if row[name] is None:
        return None
    value, low, high = (_number(factor * row[key], decimals) for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value}\n{low}–{high}"


def differences(rows: Sequence[dict[str, Any]]) -> str:
    """Two lines for each pair: what is compared, and by how many points top-1 differs."""
    lines = ["Differences in top-1, points, paired over the same images:"]
    for row in rows:
        one_model = row["name"] == row["minus"]
        models = row["name"] if one_model else f"{row['name']} − {row['minus']}"
        lines.append(f"{models}, {row['pipeline']}" + f" − {row['minus_pipeline']}" * one_model)
        value, low, high = (signed(100 * row[name]) for name in ("top1", "top1_low", "top1_high"))
        of = f"{row['differing']:,} of {row['images']:,} predictions differ"
        lines.append(f"  {value} ({low} to {high}), {of}")
    return "\n".join(lines)


def best_and_worst(of: str, names: Sequence[str], classes: Classes) -> str:
    """The few classes with the highest and the lowest top-1."""
    best, worst = (np.argsort(by, kind="stable") for by in (-classes.top1, classes.top1))
    parts = {"best": best[:SHOWN], "worst": worst[:SHOWN]} if len(best) > 2 * SHOWN else {"": best}
    words = readable_names(names)
    lines = [f"Classes by top-1, {of}:"]
    for part, places in parts.items():
        for i, place in enumerate(places):
            images = f"{classes.images[place]:,} image" + "s" * bool(classes.images[place] != 1)
            begin = f"  {'' if i else part:<5} {100 * classes.top1[place]:6.2f}%  "
            name = textwrap.shorten(words[classes.label[place]], WIDTH - len(begin) - len(images) - 2, placeholder="…")
            lines.append(f"{begin}{name}, {images}")
    return "\n".join(lines)


def write_classes(path: Path, names: Sequence[str], classes: Classes) -> None:
    """Writes a line of CSV for each class that has images; accuracies are fractions."""
    words = readable_names(names)
    headings = ("class", "name", "images", "top1", "top1_low", "top1_high", "top5")
    records = [
        dict(zip(headings, (names[label], words[label], *(score.item() for score in scores)), strict=True))
        for label, *scores in zip(*vars(classes).values(), strict=True)
    ]
    path.write_text(to_csv(records), encoding="utf-8")


def about_real(row: dict[str, Any], names: Sequence[str]) -> str:
    """How many images have ReaL labels, where the classes are ImageNet's; otherwise ""."""
    if not is_imagenet(names):
        return ""
    if row["real_images"] is None:
        return f"No ReaL labels on {row['data']}: they belong to files named ILSVRC2012_val_00000001.JPEG and so on."
    left = row["images"] - row["real_images"]
    return f"ReaL: on {row['real_images']:,} images of {row['data']}; {left:,} without such a label are left out."


def _number(value: float, decimals: int) -> str:
    """In at most five characters, so that both ends of an interval fit into a column: 99.50, 100.0, 9.125, 10.25."""
    while len(text := f"{value:.{decimals}f}") > 5 and decimals:
        decimals -= 1
    return text
