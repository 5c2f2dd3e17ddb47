"""The numbers of a comparison in the form in which charts read them."""

from __future__ import annotations

import csv
import io
from typing import Any, Literal

import altair as alt

from infvit.compare.table import Row
from infvit.tables.interval import Estimate


def epochs_of(row: Row, metric: str, most: int) -> list[dict[str, Any]]:
    """The curve of a metric over the epochs: mean and range over the row's seeds, at most `most` epochs."""
    by_epoch: dict[float, list[float]] = {}
    for run in row.counted:
        for entry in run.curves:
            epoch, value = entry.get("epoch"), entry.get(metric)
            if epoch is not None and value is not None:
                by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)
    step = -(-len(epochs) // most)
    kept = [epoch for i, epoch in enumerate(epochs) if (len(epochs) - 1 - i) % step == 0] if epochs else []
    return [
        {
            "row": row.name,
            "epoch": epoch,
            "mean": rounded(Estimate.of(by_epoch[epoch]).mean or 0.0),
            "low": rounded(min(by_epoch[epoch])),
            "high": rounded(max(by_epoch[epoch])),
            "seeds": len(by_epoch[epoch]),
            "comparable": row.comparable,
        }
        for epoch in kept
    ]


def gammas(row: Row) -> list[dict[str, Any]]:
    """The discount of each block in the last epoch, where the run has one: mean and range over the row's seeds."""
    by_block: dict[int, list[float]] = {}
    for run in row.counted:
        for name, value in (run.curves[-1] if run.curves else {}).items():
            kind, _, block = name.partition("/")
            if kind == "gamma" and block.isdigit() and value is not None:
                by_block.setdefault(int(block), []).append(value)
    return [
        {
            "row": row.name,
            "block": block,
            "mean": rounded(Estimate.of(values).mean or 0.0),
            "low": rounded(min(values)),
            "high": rounded(max(values)),
            "seeds": len(values),
        }
        for block, values in sorted(by_block.items())
    ]


def data(points: list[dict[str, Any]]) -> alt.InlineData:
    """The points as CSV text: a third of the size of JSON, and altair does not validate it cell by cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(points[0]), lineterminator="\n")
    writer.writeheader()
    # Vega takes any text but "false" for true, Python's "False" included.
    writer.writerows({k: str(v).lower() if isinstance(v, bool) else v for k, v in point.items()} for point in points)
    kinds = {name: _kind([point[name] for point in points]) for name in points[0]}
    return alt.InlineData(values=text.getvalue(), format=alt.CsvDataFormat(type="csv", parse=kinds))


def _kind(values: list[Any]) -> Literal["boolean", "number", "string"]:
    if all(isinstance(value, bool) for value in values):
        return "boolean"
    return "string" if any(isinstance(value, str) for value in values) else "number"


def rounded(value: float) -> float:
    """Five digits: more than a chart shows, and half the size."""
    return float(f"{value:.5g}")
