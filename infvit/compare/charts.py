"""The charts of a comparison, without sizes and colours, which the page and the pictures give them."""

from __future__ import annotations

from typing import Any, TypeAlias

import altair as alt

from infvit.compare.chart_data import data, epochs_of, gammas, rounded
from infvit.compare.table import Comparison, Row
from infvit.tables.interval import Estimate

# What alt.layer is declared to return.
Drawing: TypeAlias = alt.LayerChart | alt.FacetChart
# Points over all curves of one chart: above it epochs are left out, so that a page of 200 runs stays small.
MOST_POINTS = 8000
COSTS = {
    "flops_forward": "FLOPs forward, per image",
    "parameters": "Parameters",
    "seconds": "Training time, seconds",
    "images_per_second": "Training images per second",
}


def curves(comparison: Comparison, metric: str, title: str) -> Drawing | None:
    """A curve against the epoch for each row: the mean over its finished seeds in a band from lowest to highest."""
    rows = [row for row in comparison.rows if row.counted]
    points = [point for row in rows for point in epochs_of(row, metric, max(20, MOST_POINTS // len(rows)))]
    if not points:
        return None
    accuracy = metric.endswith(("top1", "top5"))
    shown = ".2%" if accuracy else ".4f"
    drawn = {point["row"] for point in points}
    name = metric.replace("/", "_")
    pick, fade = _legend_pick(name)
    base = alt.Chart(data(points)).encode(
        x=alt.X("epoch:Q", title="Epoch", axis=alt.Axis(tickMinStep=1)),
        color=_colour([row for row in rows if row.name in drawn], comparison),
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
        y=y,
        opacity=alt.condition(near, alt.value(1), alt.value(0)),
        tooltip=[
            alt.Tooltip("row:N", title="model"),
            alt.Tooltip("epoch:Q"),
            alt.Tooltip("mean:Q", title=title, format=shown),
            alt.Tooltip("low:Q", title="lowest seed", format=shown),
            alt.Tooltip("high:Q", title="highest seed", format=shown),
            alt.Tooltip("seeds:Q"),
        ],
    )
    return alt.layer(band, line, dots.add_params(pick, near))


def accuracy_against(comparison: Comparison, cost: str = "flops_forward") -> Drawing | None:
    """Top-1 of each row against one of `COSTS`, with its 95% interval; hollow where the row is not comparable."""
    rows = [row for row in comparison.rows if row.top1.mean is not None and _cost(row, cost)]
    if not rows:
        return None
    points = [
        {
            "row": row.name,
            "cost": _cost(row, cost),
            "top1": row.top1.mean,
            "low": row.top1.low,
            "high": row.top1.high,
            "interval": "–" if row.top1.half_width is None else f"± {100 * row.top1.half_width:.2f} points",
            "seeds": row.top1.n,
            "comparable": row.comparable,
            "differs": "; ".join(row.differs) or "✓",
        }
        for row in rows
    ]
    costs = [value for row in rows if (value := _cost(row, cost))]
    means = [row.top1.mean for row in rows if row.top1.mean is not None]
    # An interval may leave [0, 1], a picture of accuracies may not.
    low = max(0.0, min([*means, *(row.top1.low for row in rows if row.top1.low is not None)]))
    high = min(1.0, max([*means, *(row.top1.high for row in rows if row.top1.high is not None)]))
    margin = 0.06 * (high - low) or 0.01
    y_scale = alt.Scale(domain=[max(0.0, low - margin), min(1.0, high + margin)], nice=False)
    log = max(costs) > 20 * min(costs)
    x_scale = alt.Scale(padding=30, type="log") if log else alt.Scale(padding=30, zero=False)
    pick, fade = _legend_pick(cost)
    base = alt.Chart(data(points)).encode(
        x=alt.X("cost:Q", title=COSTS[cost], scale=x_scale, axis=alt.Axis(format="~s")),
        color=_colour(rows, comparison),
        opacity=fade,
        tooltip=[
            alt.Tooltip("row:N", title="model"),
            alt.Tooltip("top1:Q", title="top-1", format=".2%"),
            alt.Tooltip("interval:N", title="95% interval"),
            alt.Tooltip("seeds:Q"),
            alt.Tooltip("cost:Q", title=COSTS[cost], format=".4~s"),
            alt.Tooltip("differs:N", title="comparable"),
        ],
    )
    y = alt.Y("top1:Q", title="Test top-1", scale=y_scale, axis=alt.Axis(format="~%"))
    bars = base.mark_rule(strokeWidth=2, clip=True).encode(
        y=alt.Y("low:Q", scale=y_scale, title="Test top-1"), y2="high:Q"
    )
    filled = alt.condition("datum.comparable", alt.value(1), alt.value(0.15))
    dots = base.mark_point(filled=False, size=130, strokeWidth=2).encode(
        y=y, fill=base.encoding.color, fillOpacity=filled
    )
    return alt.layer(bars.transform_filter("isValid(datum.low)"), dots.add_params(pick))


def accuracy_bars(comparison: Comparison) -> Drawing | None:
    """Top-1 of each row as a bar from zero, with its 95% interval."""
    rows = [row for row in comparison.rows if row.top1.mean is not None]
    if not rows:
        return None
    values = [_with_interval(row, row.top1) for row in rows]
    base = alt.Chart(data(values)).encode(y=_names(rows), tooltip=_told("top-1", ".2%"))
    # An interval may leave [0, 1], a picture of accuracies may not.
    scale = alt.Scale(domain=[0, 1])
    bars = base.mark_bar(cornerRadiusEnd=3).encode(
        x=alt.X("mean:Q", title="Test top-1", scale=scale, axis=alt.Axis(format="~%", grid=True)),
        color=_colour(rows, comparison, legend=False),
        opacity=alt.condition("datum.comparable", alt.value(0.75), alt.value(0.25)),
    )
    return alt.layer(bars, *_error_bars(base, scale, "Test top-1"))


def paired_top1(comparison: Comparison) -> Drawing | None:
    """Each row's difference to its baseline in percentage points, paired by seed, with its 95% interval around zero."""
    rows = [row for row in comparison.rows if row.paired and row.paired.top1.mean is not None]
    if not rows:
        return None
    values = [_with_interval(row, row.paired.top1, 100) for row in rows if row.paired]
    base = alt.Chart(data(values)).encode(y=_names(rows), tooltip=_told("difference", "+.2f"))
    scale = alt.Scale(zero=True, nice=True)
    title = f"Top-1 against {comparison.baseline}, points"
    zero = alt.Chart(alt.InlineData(values=[{"zero": 0}])).mark_rule(strokeDash=[4, 3], opacity=0.6).encode(x="zero:Q")
    dots = base.mark_circle(size=110, opacity=1).encode(
        x=alt.X("mean:Q", title=title, scale=scale, axis=alt.Axis(grid=True)),
        color=_colour(rows, comparison, legend=False),
    )
    return alt.layer(zero, *_error_bars(base, scale, title), dots)


def gamma_by_block(comparison: Comparison) -> Drawing | None:
    """Each block's discount at the end of training: the mean over heads and seeds, and the range over seeds."""
    rows = [row for row in comparison.rows if gammas(row)]
    values = [point for row in rows for point in gammas(row)]
    if not values:
        return None
    pick, fade = _legend_pick("gamma")
    base = alt.Chart(data(values)).encode(
        x=alt.X("block:O", title="Block", axis=alt.Axis(labelAngle=0)), color=_colour(rows, comparison), opacity=fade
    )
    y = alt.Y("mean:Q", title="gamma", scale=alt.Scale(zero=False))
    told = _told("gamma", ".4f")
    ranges = base.mark_rule(strokeWidth=2).encode(
        y=alt.Y("low:Q", title="gamma", scale=alt.Scale(zero=False)), y2="high:Q"
    )
    dots = base.mark_line(point=alt.OverlayMarkDef(size=70, filled=True), strokeWidth=2)
    return alt.layer(ranges, dots.encode(y=y, tooltip=[told[0], alt.Tooltip("block:O"), *told[1:]]).add_params(pick))


def _with_interval(row: Row, estimate: Estimate, unit: float = 1.0) -> dict[str, Any]:
    ends = {"mean": estimate.mean, "low": estimate.low, "high": estimate.high}
    scaled = {name: None if value is None else rounded(unit * value) for name, value in ends.items()}
    return {"row": row.name, **scaled, "seeds": estimate.n, "comparable": row.comparable}


def _error_bars(base: alt.Chart, scale: alt.Scale, title: str) -> list[alt.Chart]:
    """The interval as a line with an upright end, where there is one."""
    known = base.transform_filter("isValid(datum.low)")
    ends = [known.mark_tick(thickness=2, size=9, clip=True).encode(x=f"{end}:Q") for end in ("low", "high")]
    line = known.mark_rule(strokeWidth=2, clip=True).encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q")
    return [line, *ends]


def _names(rows: list[Row]) -> alt.Y:
    return alt.Y("row:N", title=None, sort=[row.name for row in rows], axis=alt.Axis(labelLimit=170, ticks=False))


def _told(value: str, form: str) -> list[alt.Tooltip]:
    """What a mark with an interval says when pointed at."""
    numbers = [alt.Tooltip(f"{end}:Q", title=end, format=form) for end in ("low", "high")]
    return [
        alt.Tooltip("row:N", title="model"),
        alt.Tooltip("mean:Q", title=value, format=form),
        *numbers,
        alt.Tooltip("seeds:Q"),
    ]


def _cost(row: Row, cost: str) -> float | None:
    value = getattr(row, cost) if cost in ("seconds", "images_per_second") else row.known(cost)
    return value.mean if isinstance(value, Estimate) else value


def _colour(rows: list[Row], comparison: Comparison, legend: bool = True) -> alt.Color:
    """One colour for a row in every chart, in the order of the table."""
    shown = {row.name for row in rows}
    everyone = [row.name for row in comparison.rows if row.finished]
    values = alt.Legend(values=[name for name in everyone if name in shown])
    return alt.Color("row:N", scale=alt.Scale(domain=everyone), legend=values if legend else None)


def _legend_pick(chart: str) -> tuple[alt.Parameter, Any]:
    # Two charts in one picture must not share the name of a parameter.
    pick = alt.selection_point(name=f"pick_{chart}", fields=["row"], bind="legend")
    return pick, _if(pick, 1, 0.12)


def _if(pick: alt.Parameter, chosen: float, otherwise: float) -> Any:
    return alt.condition(pick, alt.value(chosen), alt.value(otherwise))
