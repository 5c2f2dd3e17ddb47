"""A comparison as one HTML page that needs nothing beside it and asks no network."""

from __future__ import annotations

import base64
import os
import re
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from infvit.compare import render
from infvit.compare.charts import COSTS
from infvit.compare.pictures import charts, library, spec
from infvit.compare.provenance import flat, subject
from infvit.compare.table import Comparison, Row
from infvit.run.result import CONFIG_FIELDS, WITHOUT_NUMBERS, Result
from infvit.tables.html import environment
from infvit.tables.interval import Estimate
from infvit.tables.theme import THEMES

TEMPLATE = "page.html.jinja"
ATTENTION_PICTURE = "attention.png"
"""In a run's folder: what its model looks at, made by the run."""
MOST_INLINED = 2_000_000
"""Characters of pictures within the page, so that one of 200 rows stays below 5 MB; what is beyond is linked."""


class Look(NamedTuple):
    """What the first counted seed of a row looks at: a link to the picture, and the picture itself or nothing."""

    row: str
    seed: int
    link: str
    inlined: str


def to_html(comparison: Comparison, page_dir: str | Path = ".") -> str:
    """The page: what was compared, a sortable table, charts, every run. Links to run folders start from `page_dir`."""
    templates = environment(Path(__file__).parent)
    templates.filters |= {
        "breakable": _breakable,
        "heading": render.heading,
        "percent": render.percent,
        "points": render.points,
        "speed": render.speed,
        "as_published": render.as_published,
        "map_heading": render.map_heading,
        "maps_as_published": render.maps_as_published,
        "plain": render.plain,
        "rate": render.rate,
        "amount": render.amount,
        "duration": render.duration,
    }
    specs = {name: spec(chart) for name, chart in charts(comparison).items()}
    looks = _looks(comparison.rows, page_dir)
    runs = [(row, run) for row in comparison.rows for run in row.runs]
    return templates.get_template(TEMPLATE).render(
        title=_title(comparison),
        comparison=comparison,
        counts=_counts(comparison),
        subject=subject(comparison),
        notes=render.notes(comparison),
        failures=render.failures(comparison),
        unfinished=render.unfinished(comparison),
        explained=render.explained(comparison),
        flops=render.FLOPS,
        paired=any(row.paired for row in comparison.rows),
        published=any(row.published for row in comparison.rows),
        nothing=Estimate(),
        verdict=_verdict,
        whiskers=_whiskers(comparison.rows),
        models=sorted({row.config.model for row in comparison.rows}),
        recipes=sorted({_recipe(row.config) for row in comparison.rows}),
        recipe=_recipe,
        runs=runs,
        folder=lambda run: _folder(run, page_dir),
        configs={
            "rows": {row.name: _facts(row.config) for row in comparison.rows},
            "runs": [_facts(run) + _of_the_run(run) for _, run in runs],
        },
        looks=looks,
        lookless=[row.name for row in comparison.rows if row.finished and row.name not in {look.row for look in looks}],
        charts=specs,
        costs={name: title for name, title in COSTS.items() if name in specs},
        themes=THEMES,
        # A page without charts goes without it.
        bundle=Markup(library()) if specs else "",
    )


def _breakable(name: str) -> Markup:
    """The name, which may be broken after its underscores and equals signs."""
    return Markup("<wbr>").join(re.split("(?<=[_=])", name))


def _title(comparison: Comparison) -> str:
    names = [row.name for row in comparison.rows]
    if not names:
        return "Comparison without a readable run"
    shown = names if len(names) <= 5 else [*names[:4], f"{len(names) - 4} more"]
    return " and ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))


def _counts(comparison: Comparison) -> list[tuple[int, str]]:
    """How many configurations and runs of each kind there are, as pairs of number and word."""
    counts = [(len(comparison.rows), "configuration" if len(comparison.rows) == 1 else "configurations")]
    counts += [(sum(row.count(s) for row in comparison.rows), s) for s in ("finished", *WITHOUT_NUMBERS)]
    counts.append((len(comparison.unreadable), "unreadable"))
    return [(n, word) for n, word in counts if n]


def _recipe(run: Result) -> str:
    return f"{run.recipe}#{run.recipe_hash[:8]}" if run.recipe_hash else run.recipe


def _verdict(difference: Estimate | None) -> str:
    """Whether the whole interval of a difference lies on one side of zero."""
    if difference is None or difference.low is None or difference.high is None:
        return ""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else ""


def _facts(run: Result) -> list[tuple[str, str]]:
    """The configuration, as pairs of name and value, what is not known left out."""
    facts = {name: getattr(run, name) for name in CONFIG_FIELDS} | {"parameters": run.parameters}
    return [(name.replace("_", " "), str(value)) for name, value in facts.items() if value not in (None, "")]


def _of_the_run(run: Result) -> list[tuple[str, str]]:
    """What one run adds to its configuration."""
    facts: dict[str, object] = {name: f"{value:.4g}" for name, value in run.metrics.items() if value is not None}
    facts |= {"started": run.started, "last written (UTC)": run.last_written, "commit": run.git_commit}
    facts |= {"hardware": flat(run.hardware), "versions": flat(run.versions), "command": run.command}
    return [(name, str(value)) for name, value in facts.items() if value]


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


def _looks(rows: tuple[Row, ...], page_dir: str | Path) -> list[Look]:
    """The attention pictures that there are, in the order of the rows, within the page as long as there is room."""
    looks = []
    room = MOST_INLINED
    for row in rows:
        run = next(iter(row.counted), None)
        if run is None or not run.run_dir:
            continue
        try:
            content = (Path(run.run_dir) / ATTENTION_PICTURE).read_bytes()
        except OSError:
            continue
        if not content.startswith(b"\x89PNG"):
            continue
        inlined = f"data:image/png;base64,{base64.b64encode(content).decode()}"
        fits = len(inlined) <= room
        room -= len(inlined) if fits else 0
        link = _folder(run, page_dir)[1]
        looks.append(Look(row.name, run.seed, link and link + ATTENTION_PICTURE, inlined if fits else ""))
    return looks


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
