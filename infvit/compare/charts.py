"""The charts of a comparison, as Vega-Lite for the page and as PNG; `infvit.tables.theme` gives their colours."""

import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any, TypeAlias

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
ACCURACIES = (0.0, 1.0)
"""An interval may exceed them, a chart may not."""
COSTS = {
    "flops_forward": "FLOPs forward, per image",
    "parameters": "Parameters",
    "seconds": "Training time, seconds",
    "train_images_per_second": "Training images per second",
}
PICTURES: dict[str, tuple[dict[str, dict[str, Any]], alt.Title]] = {
    "accuracy.png": (
        {"accuracy": {"width": 360, "height": alt.Step(28)}, "paired": {"width": 360, "height": alt.Step(28)}},
        alt.Title("Test top-1", subtitle="Lines: 95% intervals over seeds. Triangles: beyond the axis."),
    ),
    "accuracy_vs_flops.png": (
        {"flops_forward": {"width": 560, "height": 340}},
        alt.Title(
            "Test top-1 against compute",
            subtitle="Bars: 95% interval over seeds. Hollow: not comparable. At the edge: beyond it.",
        ),
    ),
    "curves.png": (
        {"val_top1": {"width": 460, "height": 300}, "train_loss": {"width": 460, "height": 300}},
        alt.Title("Mean over finished seeds", subtitle="Band: lowest to highest seed. Dashed: not comparable."),
    ),
}
"""The charts of each picture, side by side, with their sizes, and its title."""


def write_pictures(comparison: Comparison, folder: Path) -> list[str]:
    """Writes the `PICTURES`, returns their names; removes an earlier one for which nothing was measured now."""
    drawn = charts(comparison)
    written = []
    for name, (sizes, title) in PICTURES.items():
        (folder / name).unlink(missing_ok=True)
        if parts := [drawn[part].properties(**size) for part, size in sizes.items() if part in drawn]:
            (folder / name).write_bytes(to_png(alt.hconcat(*parts, spacing=40, title=title)))
            written.append(name)
    return written


def charts(comparison: Comparison) -> dict[str, Drawing]:
    """Every chart of the page by its name, without those that have no data."""
    rows = [row for row in comparison.rows if row.finished]
    names = [row.name for row in rows]
    top1 = {row.name: _with_interval(row, row.top1) for row in rows if row.top1.n}
    paired = [_with_interval(row, row.paired.top1, 100) for row in rows if row.paired.top1.n]
    difference = f"Top-1 against {comparison.baseline}, points"
    found: dict[str, tuple[Points, Callable[[Points, list[str]], Drawing]]] = {
        "accuracy": ([*top1.values()], partial(by_row, title="Test top-1", form=".2%", axis="~%", whole=ACCURACIES)),
        "paired": (paired, partial(by_row, title=difference, form="+.2f", axis="~g", whole=(-100.0, 100.0))),
        "val_top1": (_epochs(rows, "val/top1"), partial(curves, name="val_top1", title="Validation top-1")),
        "train_loss": (_epochs(rows, "train/loss"), partial(curves, name="train_loss", title="Training loss")),
        "gamma": (_blocks(rows), gamma_by_block),
    }
    for cost in COSTS:
        known = [(row, value) for row in rows if row.name in top1 and (value := row.field(cost).mean)]
        points = [top1[row.name] | {"cost": value, "differs": "; ".join(row.differs) or "✓"} for row, value in known]
        found[cost] = (points, partial(accuracy_against, cost=cost))
    return {name: draw(points, names) for name, (points, draw) in found.items() if points}


def curves(points: Points, names: list[str], name: str, title: str) -> Drawing:
    """A curve against the epoch for each row: the mean over its finished seeds in a band from lowest to highest.

    The axis of accuracies is `zoomed`: the first epochs, and a row that learns nothing, may lie below it.
    """
    axis, form = ("~%", ".2%") if name == "val_top1" else ("~g", ".4f")
    pick, fade = _legend_pick(name)
    base = alt.Chart(_data(points)).encode(
        x=alt.X("epoch:Q", title="Epoch", axis=alt.Axis(tickMinStep=1)), color=_colour(points, names)
    )
    scale = alt.Scale(zero=False)
    if name == "val_top1":
        scale = alt.Scale(domain=list(zoomed(points, ACCURACIES)), nice=False, zero=False)
    y = alt.Y("mean:Q", title=title, scale=scale, axis=alt.Axis(format=axis))
    near = alt.selection_point(
        f"near_{name}", fields=["epoch"], nearest=True, on="pointermove", clear="pointerout", empty=False
    )
    # Dashed: the row is not comparable with the others.
    dash = alt.StrokeDash("comparable:N", legend=None, scale=alt.Scale(domain=[1, 0], range=[[1, 0], [5, 4]]))
    band = base.mark_area(clip=True).encode(y=alt.Y("low:Q", title=title), y2="high:Q", opacity=_if(pick, 0.16, 0.02))
    line = base.mark_line(strokeWidth=2, clip=True).encode(y=y, strokeDash=dash, opacity=fade)
    dots = base.mark_circle(size=45, clip=True).encode(
        y=y, opacity=_if(near, 1, 0), tooltip=_tooltip(title, form, "epoch:Q", " seed")
    )
    return alt.layer(band, line, dots.add_params(pick, near))


def accuracy_against(points: Points, names: list[str], cost: str) -> Drawing:
    """Top-1 of each row against one of `COSTS`, with its 95% interval; hollow where the row is not comparable."""
    low, high = zoomed(points, ACCURACIES)
    y_scale = alt.Scale(domain=[low, high], nice=False, zero=False, clamp=True)
    costs = [point["cost"] for point in points]
    log = max(costs) > 20 * min(costs)
    x_scale = alt.Scale(padding=30, type="log") if log else alt.Scale(padding=30, zero=False)
    pick, fade = _legend_pick(cost)
    further = [alt.Tooltip("cost:Q", title=COSTS[cost], format=".4~s"), alt.Tooltip("differs:N", title="comparable")]
    base = alt.Chart(_data(points)).encode(
        x=alt.X("cost:Q", title=COSTS[cost], scale=x_scale, axis=alt.Axis(format="~s")),
        color=_colour(points, names),
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


def by_row(points: Points, names: list[str], title: str, form: str, axis: str, whole: tuple[float, float]) -> Drawing:
    """The mean of each row as a point with its 95% interval, on the axis of `zoomed`.

    A row beyond the axis is a triangle at its edge with its number. Where the axis has negative values, a line is at 0.
    """
    low, high = zoomed(points, whole)
    edge = {"at": lambda mean: min(max(mean, low), high), "beyond": lambda mean: (mean > high) - (mean < low)}
    points = [point | {name: find(point["mean"]) for name, find in edge.items()} for point in points]
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    y = alt.Y("row:N", title=None, sort=names, axis=alt.Axis(labelLimit=170, ticks=False, grid=True))
    base = alt.Chart(_data(points)).encode(y=y, tooltip=_tooltip(title, form), opacity=_if("datum.comparable", 1, 0.35))
    x = alt.X("at:Q", title=title, scale=scale, axis=alt.Axis(format=axis, grid=True))
    shapes = alt.Scale(domain=[-1, 0, 1], range=["triangle-left", "circle", "triangle-right"])
    colour = _colour(points, names, legend=False)
    dots = base.mark_point(size=100, filled=True).encode(
        x=x, color=colour, shape=alt.Shape("beyond:N", scale=shapes, legend=None)
    )
    layers = [*_error_bars(base, scale, title), dots]
    for side in (-1, 1):
        if any(point["beyond"] == side for point in points):
            words = base.transform_filter(f"datum.beyond == {side}").mark_text(
                align="left" if side < 0 else "right", dx=-12 * side
            )
            layers.append(words.encode(x=x, text=alt.Text("mean:Q", format=form)))
    if low < 0 < high:
        zero = alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(strokeDash=[4, 3], opacity=0.6)
        layers.insert(0, zero.encode(x=alt.X("zero:Q", scale=scale)))
    return alt.layer(*layers)


def zoomed(points: Points, whole: tuple[float, float]) -> tuple[float, float]:
    """The ends of an axis that shows the differences of most rows: those of the values within Tukey's outer fences.

    The fences are at three times the range of the middle half of all means and ends of intervals, so that one row at
    chance does not press all others together. `whole`: the ends of all possible values.
    """
    least = (whole[1] - whole[0]) / 100
    values = [point[name] for point in points for name in ("mean", "low", "high") if point[name] is not None]
    first, _, third = quantiles(values * 2, n=4, method="inclusive")
    reach = 3 * max(third - first, least)
    near = [value for value in values if first - reach <= value <= third + reach]
    margin = 0.06 * (max(near) - min(near)) or least
    return max(whole[0], min(near) - margin), min(whole[1], max(near) + margin)


def gamma_by_block(points: Points, names: list[str]) -> Drawing:
    """Each block's discount at the end of training: the mean over heads and seeds, and the range over seeds."""
    pick, fade = _legend_pick("gamma")
    base = alt.Chart(_data(points)).encode(
        x=alt.X("block:O", title="Block", axis=alt.Axis(labelAngle=0)), color=_colour(points, names), opacity=fade
    )
    scale = alt.Scale(zero=False)
    ranges = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", title="gamma", scale=scale), y2="high:Q")
    dots = base.mark_line(point=alt.OverlayMarkDef(size=70, filled=True), strokeWidth=2).encode(
        y=alt.Y("mean:Q", title="gamma", scale=scale), tooltip=_tooltip("gamma", ".4f", "block:O")
    )
    return alt.layer(ranges, dots.add_params(pick))


def _epochs(rows: list[Row], metric: str) -> Points:
    """The rows' curves of a metric; of many epochs equally spaced ones, the last among them."""
    points = []
    for row in rows:
        entries = [(x.get("epoch"), x.get(metric)) for run in row.counted for x in run.curves]
        curve = _with_ranges(row, "epoch", entries)
        step = -(-len(curve) // max(20, MOST_POINTS // len(rows))) or 1
        points += curve[::-1][::step][::-1]
    return points


def _blocks(rows: list[Row]) -> Points:
    """The discount of each block in the last epoch, "gamma/0", "gamma/1", ..."""
    points = []
    for row in rows:
        entries = [item for run in row.counted for entry in run.curves[-1:] for item in entry.items()]
        gammas = [(int(name[6:]), value) for name, value in entries if re.fullmatch(r"gamma/\d+", name)]
        points += _with_ranges(row, "block", gammas)
    return points


def _with_ranges(row: Row, axis: str, values: Iterable[tuple[float | None, float | None]]) -> Points:
    """Mean and range over the row's seeds at each place of an axis, from pairs of place and value."""
    found: dict[float, list[float]] = {}
    for place, value in values:
        if place is not None and value is not None:
            found.setdefault(place, []).append(value)
    return [
        _point(row, fmean(seeds), min(seeds), max(seeds), len(seeds)) | {axis: place}
        for place, seeds in sorted(found.items())
    ]


def _with_interval(row: Row, estimate: Estimate, unit: float = 1.0) -> dict[str, Any]:
    mean, low, high = (None if end is None else unit * end for end in (estimate.mean, estimate.low, estimate.high))
    return _point(row, mean, low, high, estimate.n)


def _point(row: Row, mean: float | None, low: float | None, high: float | None, seeds: int) -> dict[str, Any]:
    """What every chart draws of a row, in five digits: more than a chart shows, and half the size."""
    ends = {"mean": mean, "low": low, "high": high}
    rounded = {name: None if end is None else float(f"{end:.5g}") for name, end in ends.items()}
    return {"row": row.name, **rounded, "seeds": seeds, "comparable": int(row.comparable)}


def _data(points: Points) -> alt.InlineData:
    """The points as CSV text: a third of the size of JSON, and altair does not validate it cell by cell."""
    kinds: dict[str, Any] = {name: "string" if name in ("row", "differs") else "number" for name in points[0]}
    return alt.InlineData(values=to_csv(points), format=alt.CsvDataFormat(type="csv", parse=kinds))


def _error_bars(base: alt.Chart, scale: alt.Scale, title: str) -> list[alt.Chart]:
    """The interval as a line with an upright end, where there is one."""
    known = base.transform_filter("isValid(datum.low)")
    ends = [known.mark_tick(thickness=2, size=9, clip=True).encode(x=f"{end}:Q") for end in ("low", "high")]
    line = known.mark_rule(strokeWidth=2, clip=True).encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q")
    return [line, *ends]


def _tooltip(value: str, form: str, further: str = "", ends: str = "") -> list[alt.Tooltip]:
    """What a mark shows when pointed at: the row, the value with its low and high end, and the number of seeds."""
    titles = {"mean": value, "low": f"low{ends}", "high": f"high{ends}"}
    numbers = [alt.Tooltip(f"{end}:Q", title=title, format=form) for end, title in titles.items()]
    between = [alt.Tooltip(further)] if further else []
    return [alt.Tooltip("row:N", title="model"), *between, *numbers, alt.Tooltip("seeds:Q")]


def _colour(points: Points, names: list[str], legend: bool = True) -> alt.Color:
    """One colour for a row in every chart, in the order of the table."""
    drawn = {point["row"] for point in points}
    values = alt.Legend(values=[name for name in names if name in drawn])
    return alt.Color("row:N", scale=alt.Scale(domain=names), legend=values if legend else None)


def _legend_pick(chart: str) -> tuple[alt.Parameter, Any]:
    # Two charts in one picture must not share the name of a parameter.
    pick = alt.selection_point(name=f"pick_{chart}", fields=["row"], bind="legend")
    return pick, _if(pick, 1, 0.12)


def _if(condition: alt.Parameter | str, then: float, otherwise: float) -> Any:
    return alt.condition(condition, alt.value(then), alt.value(otherwise))
