"""What the terminal shows of evaluations, in 80 columns, and the classes as CSV."""

import csv
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infvit.class_names import is_imagenet, readable_names
from infvit.measure.accuracy.scores import Classes

WIDTH = 80
COLUMN = 12
COLUMNS = {
    "top1": ("top-1 %", 100, 2),
    "top5": ("top-5 %", 100, 2),
    "loss": ("loss", 1, 3),
    "ece": ("ECE %", 100, 2),
    "real_top1": ("ReaL %", 100, 2),
}
"""Heading, factor and decimals."""
SHOWN = 3
"""So many of the best and of the worst classes."""


def scores(rows: Sequence[dict[str, Any]]) -> str:
    """Two lines a row: the model and its numbers, the pipeline and their intervals."""
    shown = {name: column for name, column in COLUMNS.items() if any(row[name] is not None for row in rows)}
    room = WIDTH - COLUMN * len(shown)
    lines = [" " * room + "".join(f"{heading:>{COLUMN}}" for heading, _, _ in shown.values())]
    for row in rows:
        cells: tuple[list[str], list[str]] = [], []
        for name, (_, factor, decimals) in shown.items():
            value, low, high = (row[key] for key in (name, f"{name}_low", f"{name}_high"))
            known = value is not None
            cells[0].append(_number(factor * value, decimals) if known else "–")
            cells[1].append("–".join(_number(factor * end, decimals) for end in (low, high)) if known else "")
        if len(row["name"]) > room:
            lines.append(row["name"])
        names = row["name"] if len(row["name"]) <= room else "", f"  {row['pipeline']}"
        for name, line in zip(names, cells, strict=True):
            lines.append((f"{name:<{room}}" + "".join(f"{cell:>{COLUMN}}" for cell in line)).rstrip())
    return "\n".join(lines)


def differences(rows: Sequence[dict[str, Any]]) -> str:
    """Two lines a row: what is compared, and by how many points top-1 differs."""
    lines = ["Differences in top-1, points, paired over the same images:"]
    for row in rows:
        if row["name"] == row["minus"]:
            lines.append(f"{row['name']}, {row['pipeline']} − {row['minus_pipeline']}")
        else:
            lines.append(f"{row['name']} − {row['minus']}, {row['pipeline']}")
        value, low, high = (_signed(100 * row[name]) for name in ("top1", "top1_low", "top1_high"))
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
    """A line for each class that has images; accuracies are fractions."""
    words = readable_names(names)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "name", "images", "top1", "top1_low", "top1_high", "top5"])
        columns = (classes.images, classes.top1, classes.low, classes.high, classes.top5)
        for label, *numbers in zip(classes.label.tolist(), *(column.tolist() for column in columns), strict=True):
            writer.writerow([names[label], words[label], *numbers])


def about_real(row: dict[str, Any], names: Sequence[str]) -> str:
    """What ReaL labels there are, where the classes are ImageNet's; otherwise nothing."""
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


def _signed(points: float) -> str:
    return f"{points:+.2f}".replace("-", "−")
