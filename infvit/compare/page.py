"""A comparison as one HTML page that needs nothing beside it and asks no network."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from infvit.compare import render
from infvit.compare.charts import COSTS
from infvit.compare.interval import Estimate
from infvit.compare.palette import THEMES
from infvit.compare.pictures import charts, library, spec
from infvit.compare.result import Result
from infvit.compare.subject import subject
from infvit.compare.table import Comparison, Row

TEMPLATE = "page.html.jinja"


def to_html(comparison: Comparison, page_dir: str | Path = ".") -> str:
    """The page: what was compared, a sortable table, charts, every run. Links to run folders start from `page_dir`."""
    folder = Path(__file__).parent
    environment = Environment(loader=FileSystemLoader(folder), autoescape=True, undefined=StrictUndefined)
    environment.filters |= {
        "percent": render.percent,
        "plain": render.plain,
        "rate": render.rate,
        "amount": render.amount,
        "duration": render.duration,
    }
    specs = {name: spec(chart) for name, chart in charts(comparison).items()}
    return environment.get_template(TEMPLATE).render(
        title=_title(comparison),
        comparison=comparison,
        counts=_counts(comparison),
        subject=subject(comparison),
        notes=render.notes(comparison),
        failures=render.failures(comparison),
        intervals=render.INTERVALS,
        whiskers=_whiskers(comparison.rows),
        runs=[(row, run, *_folder(run, page_dir)) for row in comparison.rows for run in row.runs],
        charts=specs,
        costs={name: title for name, title in COSTS.items() if name in specs},
        themes=THEMES,
        # A page without charts goes without it.
        bundle=Markup(library()) if specs else "",
    )


def _title(comparison: Comparison) -> str:
    names = [row.name for row in comparison.rows]
    if not names:
        return "Comparison without a readable run"
    shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _counts(comparison: Comparison) -> list[tuple[int, str]]:
    """How many configurations and runs of each kind there are, as pairs of number and word."""
    counts = [(len(comparison.rows), "configuration" if len(comparison.rows) == 1 else "configurations")]
    counts += [(sum(row.count(s) for row in comparison.rows), s) for s in ("finished", "failed", "diverged", "running")]
    counts.append((len(comparison.unreadable), "unreadable"))
    return [(n, word) for n, word in counts if n]


def _folder(run: Result, page_dir: str | Path) -> tuple[str, str]:
    """The run's folder as seen from the page, and the link to it; both empty where no folder is known."""
    if not run.run_dir:
        return "", ""
    try:
        folder = Path(os.path.relpath(run.run_dir, page_dir)).as_posix()
    except ValueError:  # another drive, on Windows
        return run.run_dir, ""
    # The dot keeps a folder named like "javascript:..." from being read as a scheme.
    return folder, quote(folder if folder.startswith("..") else f"./{folder}") + "/"


def _whiskers(rows: tuple[Row, ...]) -> dict[str, dict[str, Any]]:
    """For each row with a top-1, where its mean and interval lie on one scale shared by all rows, in percent."""

    def ends(estimate: Estimate) -> tuple[float, float, float]:
        mean = estimate.mean or 0.0
        low, high = (mean if end is None else end for end in (estimate.low, estimate.high))
        return max(0.0, low), mean, min(1.0, high)

    drawn = {row.name: ends(row.top1) for row in rows if row.top1.mean is not None}
    if not drawn:
        return {}
    start, stop = min(low for low, _, _ in drawn.values()), max(high for _, _, high in drawn.values())
    span = stop - start or 1.0
    return {
        name: {key: round(100 * (x - start) / span, 2) for key, x in zip(("low", "mean", "high"), three, strict=True)}
        for name, three in drawn.items()
    }
