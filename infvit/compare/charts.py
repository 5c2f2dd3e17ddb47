"""The charts of a comparison, as Vega-Lite for the page and as PNG; `infvit.tables.theme` gives their colours."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, TypeAlias

import altair as alt

from infvit.compare.comparison import Comparison, Row
from infvit.tables.interval import Estimate
from infvit.tables.table import to_csv
from infvit.tables.theme import to_png

Drawing: TypeAlias = alt.LayerChart | alt.FacetChart
"""The declared return type of alt.layer."""
Points: TypeAlias = list[dict[str, Any]]
MOST_POINTS = 8000
"""Of all curves of one chart: above it epochs are left out, so that a page of 200 runs stays small."""
COSTS = {
    "flops_forward": "FLOPs forward, per image",
    "parameters": "Parameters",
    "seconds": "Training time, seconds",
    "train_images_per_second": "Training images per second",
}
PICTURES = ("accuracy.png", "accuracy_vs_flops.png", "curves.png")


def write_pictures(comparison: Comparison, folder: Path) -> list[Path]:
    """Writes the `PICTURES`; removes an earlier one for which nothing was measured now."""
    drawn = charts(comparison)
    bars = [drawn[name].properties(width=360, height=alt.Step(28)) for name in ("accuracy", "paired") if name in drawn]
    curves = [drawn[name].properties(width=460, height=300) for name in ("val_top1", "train_loss") if name in drawn]
    costs = [drawn[name].properties(width=560, height=340) for name in ("flops_forward",) if name in drawn]
    titles = (
        ("Test top-1", "Lines: 95% intervals over seeds. The difference is paired by seed."),
        ("Test top-1 against compute", "Bars: 95% interval over seeds. Hollow: not comparable."),
        ("Mean over finished seeds", "Band: lowest to highest seed. Dashed: not comparable."),
    )
    written = []
    for name, parts, (title, subtitle) in zip(PICTURES, (bars, costs, curves), titles, strict=True):
        path = folder / name
        if not parts:
            path.unlink(missing_ok=True)
            continue
        path.write_bytes(to_png(alt.hconcat(*parts, spacing=40, title=alt.Title(title, subtitle=subtitle))))
        written.append(path)
    return written


def charts(comparison: Comparison) -> dict[str, Drawing]:
    """Every chart of the page by its name, without those that have no data."""
    found = {
        "accuracy": accuracy_bars(comparison),
        "paired": paired_top1(comparison),
        "val_top1": curves(comparison, "val/top1", "Validation top-1"),
        "train_loss": curves(comparison, "train/loss", "Training loss"),
        "gamma": gamma_by_block(comparison),
    }
    found |= {cost: accuracy_against(comparison, cost) for cost in COSTS}
    return {name: chart for name, chart in found.items() if chart is not None}


def curves(comparison: Comparison, metric: str, title: str) -> Drawing | None:
    """A curve against the epoch for each row: the mean over its finished seeds in a band from lowest to highest."""
    rows = [row for row in comparison.rows if row.counted]
    points = [point for row in rows for point in _epochs(row, metric, max(20, MOST_POINTS // len(rows)))]
    if not points:
        return None
    accuracy = metric.endswith(("top1", "top5"))
    name = metric.replace("/", "_")
    pick, fade = _legend_pick(name)
    base = alt.Chart(_data(points)).encode(
        x=alt.X("epoch:Q", title="Epoch", axis=alt.Axis(tickMinStep=1)), color=_colour(points, comparison)
    )
    y = alt.Y("mean:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format="~%" if accuracy else "~g"))
    near = alt.selection_point(
        f"near_{name}", fields=["epoch"], nearest=True, on="pointermove", clear="pointerout", empty=False
    )
    # Dashed: the row is not comparable with the others.
    dash = alt.StrokeDash("comparable:N", legend=None, scale=alt.Scale(domain=[True, False], range=[[1, 0], [5, 4]]))
    band = base.mark_area().encode(y=alt.Y("low:Q", title=title), y2="high:Q", opacity=_if(pick, 0.16, 0.02))
    line = base.mark_line(strokeWidth=2).encode(y=y, strokeDash=dash, opacity=fade)
    dots = base.mark_circle(size=45).encode(
        y=y, opacity=_if(near, 1, 0), tooltip=_tooltip(title, ".2%" if accuracy else ".4f", "epoch:Q", " seed")
    )
    return alt.layer(band, line, dots.add_params(pick, near))


def accuracy_against(comparison: Comparison, cost: str) -> Drawing | None:
    """Top-1 of each row against one of `COSTS`, with its 95% interval; hollow where the row is not comparable."""
    points = []
    for row in comparison.rows:
        value = _cost(row, cost)
        if row.top1.mean is not None and value:
            points.append(_with_interval(row, row.top1) | {"cost": value, "differs": "; ".join(row.differs) or "✓"})
    if not points:
        return None
    # An interval may exceed [0, 1], a chart of accuracies may not.
    ends = [point[name] for point in points for name in ("mean", "low", "high") if point[name] is not None]
    low, high = max(0.0, min(ends)), min(1.0, max(ends))
    margin = 0.06 * (high - low) or 0.01
    y_scale = alt.Scale(domain=[max(0.0, low - margin), min(1.0, high + margin)], nice=False)
    costs = [point["cost"] for point in points]
    log = max(costs) > 20 * min(costs)
    x_scale = alt.Scale(padding=30, type="log") if log else alt.Scale(padding=30, zero=False)
    pick, fade = _legend_pick(cost)
    further = [alt.Tooltip("cost:Q", title=COSTS[cost], format=".4~s"), alt.Tooltip("differs:N", title="comparable")]
    base = alt.Chart(_data(points)).encode(
        x=alt.X("cost:Q", title=COSTS[cost], scale=x_scale, axis=alt.Axis(format="~s")),
        color=_colour(points, comparison),
        opacity=fade,
        tooltip=[*_tooltip("top-1", ".2%"), *further],
    )
    y = alt.Y("mean:Q", title="Test top-1", scale=y_scale, axis=alt.Axis(format="~%"))
    bars = base.mark_rule(strokeWidth=2, clip=True).encode(
        y=alt.Y("low:Q", scale=y_scale, title="Test top-1"), y2="high:Q"
    )
    dots = base.mark_point(filled=False, size=130, strokeWidth=2).encode(
        y=y, fill=base.encoding.color, fillOpacity=_if("datum.comparable", 1, 0.15)
    )
    return alt.layer(bars.transform_filter("isValid(datum.low)"), dots.add_params(pick))


def accuracy_bars(comparison: Comparison) -> Drawing | None:
    """Top-1 of each row as a bar from zero, with its 95% interval."""
    points = [_with_interval(row, row.top1) for row in comparison.rows if row.top1.mean is not None]
    if not points:
        return None
    base = alt.Chart(_data(points)).encode(y=_names(points), tooltip=_tooltip("top-1", ".2%"))
    # An interval may exceed [0, 1], a chart of accuracies may not.
    scale = alt.Scale(domain=[0, 1])
    bars = base.mark_bar(cornerRadiusEnd=3).encode(
        x=alt.X("mean:Q", title="Test top-1", scale=scale, axis=alt.Axis(format="~%", grid=True)),
        color=_colour(points, comparison, legend=False),
        opacity=_if("datum.comparable", 0.75, 0.25),
    )
    return alt.layer(bars, *_error_bars(base, scale, "Test top-1"))


def paired_top1(comparison: Comparison) -> Drawing | None:
    """Each row's difference to its baseline in percentage points, paired by seed, with its 95% interval around zero."""
    rows = [(row, row.paired) for row in comparison.rows if row.paired and row.paired.top1.mean is not None]
    if not rows:
        return None
    points = [_with_interval(row, paired.top1, 100) for row, paired in rows]
    base = alt.Chart(_data(points)).encode(y=_names(points), tooltip=_tooltip("difference", "+.2f"))
    scale = alt.Scale(zero=True, nice=True)
    title = f"Top-1 against {comparison.baseline}, points"
    zero = alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(strokeDash=[4, 3], opacity=0.6).encode(x="zero:Q")
    dots = base.mark_circle(size=110, opacity=1).encode(
        x=alt.X("mean:Q", title=title, scale=scale, axis=alt.Axis(grid=True)),
        color=_colour(points, comparison, legend=False),
    )
    return alt.layer(zero, *_error_bars(base, scale, title), dots)


def gamma_by_block(comparison: Comparison) -> Drawing | None:
    """Each block's discount at the end of training: the mean over heads and seeds, and the range over seeds."""
    points = [point for row in comparison.rows for point in _gammas(row)]
    if not points:
        return None
    pick, fade = _legend_pick("gamma")
    base = alt.Chart(_data(points)).encode(
        x=alt.X("block:O", title="Block", axis=alt.Axis(labelAngle=0)), color=_colour(points, comparison), opacity=fade
    )
    scale = alt.Scale(zero=False)
    ranges = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title="gamma", scale=scale), y2="high:Q")
    dots = base.mark_line(point=alt.OverlayMarkDef(size=70, filled=True), strokeWidth=2).encode(
        y=alt.Y("mean:Q", title="gamma", scale=scale), tooltip=_tooltip("gamma", ".4f", "block:O")
    )
    return alt.layer(ranges, dots.add_params(pick))


def _epochs(row: Row, metric: str, most: int) -> Points:
    """The curve of a metric: mean and range over the row's seeds for at most `most` epochs, the last among them."""
    by_epoch: dict[float, list[float]] = {}
    for run in row.counted:
        for entry in run.curves:
            epoch, value = entry.get("epoch"), entry.get(metric)
            if epoch is not None and value is not None:
                by_epoch.setdefault(epoch, []).append(value)
    epochs = sorted(by_epoch)[::-1][:: -(-len(by_epoch) // most) or 1][::-1]
    return [_with_range(row, by_epoch[epoch]) | {"epoch": epoch} for epoch in epochs]


def _gammas(row: Row) -> Points:
    """The discount of each block in the last epoch: mean and range over the row's seeds."""
    by_block: dict[int, list[float]] = {}
    for run in row.counted:
        for name, value in (run.curves[-1] if run.curves else {}).items():
            kind, _, block = name.partition("/")
            if kind == "gamma" and block.isdigit() and value is not None:
                by_block.setdefault(int(block), []).append(value)
    return [_with_range(row, values) | {"block": block} for block, values in sorted(by_block.items())]


def _with_range(row: Row, values: list[float]) -> dict[str, Any]:
    return _point(row, sum(values) / len(values), min(values), max(values), len(values))


def _with_interval(row: Row, estimate: Estimate, unit: float = 1.0) -> dict[str, Any]:
    mean, low, high = (None if end is None else unit * end for end in (estimate.mean, estimate.low, estimate.high))
    return _point(row, mean, low, high, estimate.n)


def _point(row: Row, mean: float | None, low: float | None, high: float | None, seeds: int) -> dict[str, Any]:
    """What every chart draws of a row, in five digits: more than a chart shows, and half the size."""
    ends = {"mean": mean, "low": low, "high": high}
    rounded = {name: None if end is None else float(f"{end:.5g}") for name, end in ends.items()}
    return {"row": row.name, **rounded, "seeds": seeds, "comparable": row.comparable}


def _data(points: Points) -> alt.InlineData:
    """The points as CSV text: a third of the size of JSON, and altair does not validate it cell by cell."""
    # Vega takes any text but "false" for true, Python's "False" included.
    text = to_csv([{k: str(v).lower() if isinstance(v, bool) else v for k, v in point.items()} for point in points])
    kinds = {name: _kind([point[name] for point in points]) for name in points[0]}
    return alt.InlineData(values=text, format=alt.CsvDataFormat(type="csv", parse=kinds))


def _kind(values: list[Any]) -> Literal["boolean", "number", "string"]:
    if all(isinstance(value, bool) for value in values):
        return "boolean"
    return "string" if any(isinstance(value, str) for value in values) else "number"


def _error_bars(base: alt.Chart, scale: alt.Scale, title: str) -> list[alt.Chart]:
    """The interval as a line with an upright end, where there is one."""
    known = base.transform_filter("isValid(datum.low)")
    ends = [known.mark_tick(thickness=2, size=9, clip=True).encode(x=f"{end}:Q") for end in ("low", "high")]
    line = known.mark_rule(strokeWidth=2, clip=True).encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q")
    return [line, *ends]


def _names(points: Points) -> alt.Y:
    names = [point["row"] for point in points]
    return alt.Y("row:N", title=None, sort=names, axis=alt.Axis(labelLimit=170, ticks=False))


def _tooltip(value: str, form: str, further: str = "", ends: str = "") -> list[alt.Tooltip]:
    """What a mark shows when pointed at: the row, the value with its low and high end, and the number of seeds."""
    numbers = [alt.Tooltip("mean:Q", title=value, format=form)]
    numbers += [alt.Tooltip(f"{end}:Q", title=end + ends, format=form) for end in ("low", "high")]
    return [
        alt.Tooltip("row:N", title="model"),
        *([alt.Tooltip(further)] if further else []),
        *numbers,
        alt.Tooltip("seeds:Q"),
    ]


def _cost(row: Row, cost: str) -> float | None:
    value: float | None = row.field(cost).mean if cost in ("seconds", "train_images_per_second") else row.known(cost)
    return value


def _colour(points: Points, comparison: Comparison, legend: bool = True) -> alt.Color:
    """One colour for a row in every chart, in the order of the table."""
    drawn = {point["row"] for point in points}
    names = [row.name for row in comparison.rows if row.finished]
    values = alt.Legend(values=[name for name in names if name in drawn])
    return alt.Color("row:N", scale=alt.Scale(domain=names), legend=values if legend else None)


def _legend_pick(chart: str) -> tuple[alt.Parameter, Any]:
    # Two charts in one picture must not share the name of a parameter.
    pick = alt.selection_point(name=f"pick_{chart}", fields=["row"], bind="legend")
    return pick, _if(pick, 1, 0.12)


def _if(condition: alt.Parameter | str, then: float, otherwise: float) -> Any:
    return alt.condition(condition, alt.value(then), alt.value(otherwise))
