"""The columns of a comparison, each declared once for text, Markdown, LaTeX, CSV and the page.

To add a metric that runs log, add a line to `METRICS`.
"""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from infvit.compare.comparison import Comparison, Row
from infvit.compare.evaluation import MAP_FIGURES
from infvit.compare.published import Published
from infvit.compare.significance import LEVEL
from infvit.run.result import CONFIG_FIELDS, WITHOUT_NUMBERS
from infvit.tables.interval import Estimate
from infvit.tables.numbers import amount, duration, in_range, p_value, percent, plus_minus, rate, ratio, signed
from infvit.tables.table import Column, Format, Table

TEST_SETS = {
    "imagenet_v2_matched-frequency": "V2",
    "imagenet_v2_threshold-0.7": "V2 threshold-0.7",
    "imagenet_v2_top-images": "V2 top images",
}
"""Headings of further test sets."""
WIDE: tuple[Format, ...] = ("text", "markdown", "page")
"""A page of a paper is narrower than a screen."""


def metric(heading: str, name: str, form: Callable[[float], str] = percent, **options: Any) -> Column[Row]:
    """A metric of `Result` ("test/top1"): its mean over seeds with the 95% interval."""
    options = {"key": name.replace("/", "_")} | options
    return Column(heading, lambda row: row.metric(name), partial(plus_minus, form=form), **options)


def mean(heading: str, name: str, form: Callable[[Estimate], str], **options: Any) -> Column[Row]:
    """A field of `Result` that is measured in every run ("seconds"): its mean over seeds."""
    return Column(heading, lambda row: row.field(name), form, name, **options)


def count(heading: str, name: str, **options: Any) -> Column[Row]:
    """A count of `Result` that depends on the configuration alone ("parameters")."""
    return Column(heading, lambda row: row.known(name), amount, name, ascending=True, place=3, **options)


def of_config(name: str) -> Column[Row]:
    """A field of the configuration, in CSV alone."""
    return Column("", lambda row: getattr(row.config, name), key=name, formats=())


def _difference(row: Row) -> Estimate | str | None:
    return "baseline" if row.is_baseline else row.paired.top1 if row.paired.top1.n else None


def _speed(row: Row) -> str | None:
    middle, low, high = row.paired.speed
    return "baseline" if row.is_baseline else None if middle is None else in_range(middle, low, high, ratio, "x")


def _verdict(difference: Estimate) -> str:
    """Whether the whole interval of a difference is on one side of zero."""
    if difference.low is None or difference.high is None:
        return ""
    return "better" if difference.low > 0 else "worse" if difference.high < 0 else ""


def _p_values(comparison: Comparison) -> list[Column[Row]]:
    """The two p-values of `Comparison.decided`."""

    def column(i: int, heading: str, key: str, note: str) -> Column[Row]:
        found = {name: p_values[i] for name, p_values in comparison.decided.items()}

        def decided(row: Row) -> str:
            return "decided" if found.get(row.name, 1) < LEVEL else ""

        options: dict[str, Any] = {"ascending": True, "optional": True, "priority": 8, "style": decided}
        return Column(heading, lambda row: found.get(row.name), p_value, key, note=f"{note}; Holm", **options)

    margin = f"{comparison.margin:g}"
    return [
        column(0, "Δ = 0, p", "paired_top1_p_holm", "Small: the difference is not chance"),
        column(1, f"|Δ| ≥ {margin}, p", "paired_top1_tost_p_holm", f"Small: equal within {margin} by the paired seeds"),
    ]


def _after(epochs: int) -> Column[Row]:
    key, note = f"val_top1_after_{epochs}_epochs", "Of the validation images, from the curves"
    show = partial(plus_minus, form=percent)
    return Column(f"after {epochs} ep. %", lambda row: row.after(epochs), show, key, note=note, priority=9)


def _paired(row: Row) -> dict[str, Any]:
    paired = row.paired
    values = {"baseline": paired.baseline, "paired_top1": paired.top1.mean, "paired_n": paired.top1.n}
    values["paired_top1_ci95_half_width"] = paired.top1.half_width
    ends = zip(("", "_ci95_low", "_ci95_high"), paired.speed, strict=True)
    return values | {f"paired_speed{end}": value for end, value in ends} | {"paired_speed_n": paired.log_speed.n}


def _published(published: Published) -> str:
    """The published top-1 in percent, with ImageNet-V2's where there is one, and the parameters that belong to it."""
    words = [f"{100 * published.top1:.1f}"] if published.top1 is not None else []
    words += [f"V2 {100 * published.v2_top1:.1f}"] if published.v2_top1 is not None else []
    words += [f"({amount(published.parameters)})"] if published.parameters is not None else []
    return " ".join(words)


def _published_maps(row: Row) -> str | None:
    scores = {title: getattr(row.published, name, None) for name, title in MAP_FIGURES.items()}
    return " ".join(f"{title} {100 * score:.1f}" for title, score in scores.items() if score is not None) or None


def _raw_published(row: Row) -> dict[str, Any]:
    return {f"published_{name}": value for name, value in asdict(row.published or Published("")).items()}


FIRST: list[Column[Row]] = [
    Column("model", lambda row: f"{'✓' if row.comparable else '≠'} {row.name}", left=True, formats=("text",)),
    Column("model", lambda row: row.name, key="name", left=True, formats=("markdown", "latex", "page")),
    *map(of_config, ("model", "attention", "variant")),
    Column(
        "comparable",
        lambda row: "✓" if row.comparable else "≠ " + "; ".join(row.differs),
        raw=lambda row: {"comparable": row.comparable, "differs": "; ".join(row.differs)},
        order=lambda row: len(row.differs),
        left=True,
        formats=("markdown", "page"),
        place=1,
    ),
    Column(
        "seeds",
        lambda row: row.finished,
        raw=lambda row: {"seeds": " ".join(str(run.seed) for run in row.counted), "finished": row.finished},
        formats=("text", "markdown", "latex"),
        priority=3,
    ),
    Column("runs", lambda row: row.finished, left=True, formats=("page",), place=1),
    Column(
        "no result",
        lambda row: row.troubles or "0",
        raw=lambda row: {status: row.count(status) for status in WITHOUT_NUMBERS} | {"repeats": len(row.repeats)},
        order=lambda row: len(row.runs) - row.finished - len(row.repeats),
        style=lambda row: "bad" if row.troubles else "",
        formats=("markdown", "latex", "page"),
        place=1,
        rare=True,
    ),
    metric("top-1 %", "test/top1", priority=1),
    Column(
        "val top-1 %",
        lambda row: row.objective if row.objective and row.objective.n else None,
        partial(plus_minus, form=percent),
        raw=lambda row: (row.objective or Estimate()).record("val_top1"),
        optional=True,
        priority=1,
    ),
    Column(
        "Δ top-1",
        _difference,
        partial(plus_minus, mean=lambda mean: signed(100 * mean)),
        order=lambda row: 0 if row.is_baseline else row.paired.top1.mean,
        style=lambda row: _verdict(row.paired.top1),
        note="Paired difference to the baseline, in points",
        optional=True,
        priority=2,
    ),
    Column("", _paired, raw=_paired, formats=()),
]
PUBLISHED: Column[Row] = Column(
    "published",
    lambda row: row.published,
    _published,
    raw=_raw_published,
    order=lambda row: row.published and row.published.top1,
    style=lambda _: "published",
    note="Others' numbers, not measured here",
    optional=True,
    priority=6,
)
PUBLISHED_MAPS: Column[Row] = Column(
    "published maps", _published_maps, style=lambda _: "published", optional=True, priority=13, rare=True
)
METRICS: list[Column[Row]] = [
    metric("top-5 %", "test/top5", formats=WIDE, priority=12, place=4, rare=True),
    metric("test loss", "test/loss", "{:.3f}".format, ascending=True, formats=WIDE, priority=11, place=4, rare=True),
]
COSTS: list[Column[Row]] = [
    mean("images/s", "train_images_per_second", rate, priority=9, place=3, rare=True),
    Column(
        "speed",
        _speed,
        order=lambda row: 1 if row.is_baseline else row.paired.speed[0],
        style=lambda row: _verdict(row.paired.log_speed),
        note="Paired ratio of images/s to the baseline",
        optional=True,
        priority=5,
        place=2,
    ),
    count("params", "parameters", priority=7),
    count("FLOPs", "flops_forward", priority=8),
    count("", "macs_forward", formats=()),
    count("", "flops_training", formats=()),
    mean(
        "training", "seconds", lambda x: duration(x.mean), ascending=True, formats=WIDE, priority=10, place=3, rare=True
    ),
    *(of_config(name) for name in CONFIG_FIELDS if name not in ("model", "attention", "variant")),
]


def table(comparison: Comparison) -> Table[Row]:
    """The table of all rows, with columns for the p-values, readings, further test sets and map scores that any has.

    Text prints what differs and what has no result below a row.
    """
    headings = {name: TEST_SETS.get(name, name) for name in comparison.test_sets}
    measured = [metric(f"{heading} top-1 %", f"{name}/top1", priority=4) for name, heading in headings.items()]
    options: dict[str, Any] = {"note": "Of the maps of the model's own attention", "priority": 4, "rare": True}
    measured += [metric(f"{MAP_FIGURES[name]} %", f"attention/{name}", key=name, **options) for name in comparison.maps]
    published = [PUBLISHED, PUBLISHED_MAPS] if comparison.maps else [PUBLISHED]
    readings = [*_p_values(comparison), *map(_after, comparison.readings)]
    columns = [*FIRST, *readings, *measured, *published, *METRICS, *COSTS]
    return Table(columns, comparison.rows, remarks=lambda row: filter(None, (*row.differs, row.troubles)))


def records(comparison: Comparison) -> list[dict[str, Any]]:
    """Every row as raw numbers, accuracies as fractions; an unreadable result has only `path` and `problem`."""
    rows = [record | {"path": "", "problem": ""} for record in table(comparison).records()]
    empty = dict.fromkeys(rows[0] if rows else ())
    return rows + [empty | {"path": bad.path, "problem": bad.reason} for bad in comparison.unreadable]
