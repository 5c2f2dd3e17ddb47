"""A comparison as one HTML page that needs nothing beside it and no network."""

import base64
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from markupsafe import Markup

from infvit.compare import notes
from infvit.compare.charts import ACCURACIES, COSTS, charts, zoomed
from infvit.compare.columns import table
from infvit.compare.comparison import Comparison, Row
from infvit.run.result import CONFIG_FIELDS, WITHOUT_NUMBERS, Result
from infvit.tables.html import environment
from infvit.tables.numbers import duration, percent, plus_minus
from infvit.tables.table import Column, Table
from infvit.tables.theme import THEMES, specification, vega_embed

ATTENTION_PICTURE = "attention.png"
"""In a run's folder: what its attention weighs the patches of some images with."""
LONGEST_TITLE = 60
MOST_INLINED = 2_000_000
"""Characters of pictures within the page: one of 200 rows stays below 5 MB, and further pictures are linked."""


class Run(NamedTuple):
    """A run as the page lists it: its row, its folder as seen from the page or "", and the link to it or ""."""

    row: Row
    result: Result
    folder: str
    link: str


RUNS: list[Column[Run]] = [
    Column("model", lambda run: run.row.name, left=True),
    Column("seed", lambda run: run.result.seed, ascending=True),
    Column("status", lambda run: run.result.status, left=True),
    Column("top-1 %", lambda run: run.result.metrics.get("test/top1"), percent),
    Column("training", lambda run: run.result.seconds, duration, ascending=True),
    Column("folder", lambda run: run.folder or None, left=True, style=lambda _: "long"),
    Column("error", lambda run: run.result.error_line or None, left=True, style=lambda _: "long bad", optional=True),
]


def to_html(comparison: Comparison, page_dir: str | Path = ".") -> str:
    """The page: what was compared, a sortable table, charts, every run. Links to run folders start from `page_dir`."""
    templates = environment(Path(__file__).parent)
    templates.filters |= {"breakable": _breakable, "recipe": _recipe, "plus_minus": plus_minus}
    specifications = {name: specification(chart) for name, chart in charts(comparison).items()}
    runs = [Run(row, run, *_folder(run, page_dir)) for row in comparison.rows for run in row.runs]
    pictures = _pictures([run for run in runs if run.row.counted and run.result is run.row.counted[0]])
    return templates.get_template("page.html.jinja").render(
        title=_title(comparison),
        comparison=comparison,
        counts=_counts(comparison),
        notes=notes,
        results=table(comparison),
        runs=Table(RUNS, runs),
        whiskers=_whiskers(comparison.rows),
        models=sorted({row.config.model for row in comparison.rows}),
        recipes=sorted({_recipe(row.config) for row in comparison.rows}),
        configs={
            "rows": {row.name: _facts(row.config) for row in comparison.rows},
            "runs": [_facts(run.result) + _facts_of_run(run.result) for run in runs],
        },
        pictures=pictures,
        picture_name=ATTENTION_PICTURE,
        without_picture=[row.name for row in comparison.rows if row.finished and row.name not in pictures],
        charts=specifications,
        costs={name: title for name, title in COSTS.items() if name in specifications},
        themes=THEMES,
        vega_embed=Markup(vega_embed()) if specifications else "",
    )


def _breakable(name: str) -> Markup:
    """The name, which may be broken between its words: after marks, and where a class name has its next capital."""
    return Markup("<wbr>").join(re.split("(?<=[_=.])|(?<=[a-z])(?=[A-Z])", name))


def _title(comparison: Comparison) -> str:
    """The names of the rows where they are short, or else how many there are of what."""
    names = [row.name for row in comparison.rows]
    if not names:
        return "Comparison without a readable run"
    title = " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
    if len(title) <= LONGEST_TITLE:
        return title
    models, data = ({getattr(row.config, field) for row in comparison.rows} for field in ("model", "data"))
    what = f"{len(models)} models" if len(models) == len(names) else f"{len(names)} configurations"
    of = f" of {models.pop()}" if len(models) == 1 else ""
    return f"{what}{of} on {data.pop() if len(data) == 1 else f'{len(data)} data sets'}"


def _counts(comparison: Comparison) -> list[tuple[int, str]]:
    """How many configurations and runs of each kind there are, as pairs of number and word."""
    rows = comparison.rows
    counts = {"configuration" if len(rows) == 1 else "configurations": len(rows)}
    counts |= {status: sum(row.count(status) for row in rows) for status in ("finished", *WITHOUT_NUMBERS)}
    return [(n, word) for word, n in (counts | {"unreadable": len(comparison.unreadable)}).items() if n]


def _recipe(run: Result) -> str:
    return f"{run.recipe}#{run.recipe_hash[:8]}" if run.recipe_hash else run.recipe


def _facts(run: Result) -> list[tuple[str, str]]:
    """The configuration as pairs of name and value, without what is not known."""
    facts = {name: getattr(run, name) for name in CONFIG_FIELDS} | {"parameters": run.parameters}
    return [(name.replace("_", " "), str(value)) for name, value in facts.items() if value not in (None, "")]


def _facts_of_run(run: Result) -> list[tuple[str, str]]:
    """What one run adds to its configuration."""
    facts: dict[str, object] = {name: f"{value:.4g}" for name, value in run.metrics.items() if value is not None}
    facts |= {"started": run.started, "last written (UTC)": run.last_written, "commit": run.git_commit}
    facts |= {"hardware": notes.flat(run.hardware), "versions": notes.flat(run.versions), "command": run.command}
    return [(name, str(value)) for name, value in facts.items() if value]


def _folder(run: Result, page_dir: str | Path) -> tuple[str, str]:
    if not run.run_dir:
        return "", ""
    folder = Path(os.path.relpath(run.run_dir, page_dir)).as_posix()
    # The dot keeps a folder named like "javascript:..." from being read as a scheme.
    return folder, quote(folder if folder.startswith("..") else f"./{folder}") + "/"


def _pictures(runs: Sequence[Run]) -> dict[str, tuple[Run, str]]:
    """By row, the run that has an attention picture, and the picture itself as long as the page has room, else ""."""
    pictures = {}
    room = MOST_INLINED
    for run in runs:
        path = Path(run.result.run_dir or ".") / ATTENTION_PICTURE
        if not run.result.run_dir or not path.is_file():
            continue
        inlined = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
        inlined = inlined if len(inlined) <= room else ""
        room -= len(inlined)
        pictures[run.row.name] = (run, inlined)
    return pictures


def _whiskers(rows: Sequence[Row]) -> dict[str, tuple[float, ...]]:
    """For each row with a top-1, where low end, mean and high end are on the zoomed axis of all rows, in percent."""
    known = {row.name: (mean, row.top1) for row in rows if (mean := row.top1.mean) is not None}
    points = [{"mean": mean, "low": top1.low, "high": top1.high} for mean, top1 in known.values()]
    start, end = zoomed(points, ACCURACIES) if points else ACCURACIES
    places = {}
    for name, (mean, top1) in known.items():
        marks = (mean if x is None else x for x in (top1.low, mean, top1.high))
        places[name] = tuple(round(100 * min(max((x - start) / (end - start), 0.0), 1.0), 2) for x in marks)
    return places
