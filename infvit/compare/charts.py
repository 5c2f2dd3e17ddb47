"""The pictures of a comparison, each built once: for the page, and as PNG beside it."""

from __future__ import annotations

import csv
import io
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

import altair as alt
import vl_convert

from infvit.compare.interval import Estimate
from infvit.compare.table import Comparison, Row

# What alt.layer is declared to return.
Drawing: TypeAlias = alt.LayerChart | alt.FacetChart
# Points over all curves of one chart: above it epochs are left out, so that a page of 200 runs stays small.
MOST_POINTS = 8000
LIGHT = ["#3366cc", "#e07b00", "#139a74", "#c2438f", "#0f9fc4", "#d0432f", "#7a57c9", "#8a7a12", "#6b7280", "#a0522d"]
DARK = ["#7ba4ff", "#ffb052", "#3ed1a4", "#f287c3", "#58cdf0", "#ff8a75", "#b499ff", "#d6c24a", "#a8b0bd", "#d9986c"]
COSTS = {
    "flops_forward": "FLOPs forward, per image",
    "parameters": "Parameters",
    "seconds": "Training time, seconds",
    "images_per_second": "Training images per second",
}


def theme(text: str, faint: str, palette: list[str], background: str) -> dict[str, Any]:
    """The Vega-Lite configuration that gives a chart its colours; charts themselves name none."""
    axis = {"labelColor": text, "titleColor": text, "gridColor": faint, "domainColor": faint, "tickColor": faint}
    return {
        "background": background,
        "view": {"stroke": None},
        "axis": axis | {"titleFontWeight": 500, "titleFontSize": 12, "labelFontSize": 11, "titlePadding": 10},
        "axisX": {"grid": False, "tickCount": 7},
        "legend": {"labelColor": text, "orient": "bottom", "columns": 2, "title": None, "labelLimit": 300}
        | {"labelFontSize": 12, "symbolType": "circle", "symbolSize": 90, "symbolStrokeWidth": 0, "symbolOpacity": 1},
        "title": {"color": text, "subtitleColor": text, "anchor": "start", "fontSize": 14, "fontWeight": 600},
        "range": {"category": palette},
    }


THEMES = {
    "light": theme("#3c4454", "#e3e6ec", LIGHT, "transparent"),
    "dark": theme("#c3cad6", "#2e3542", DARK, "transparent"),
}
PICTURE_THEME = theme("#3c4454", "#e3e6ec", LIGHT, "#ffffff")


def curves(comparison: Comparison, metric: str, title: str) -> Drawing | None:
    """A curve against the epoch for each row: the mean over its finished seeds in a band from lowest to highest."""
    rows = [row for row in comparison.rows if row.counted]
    points = [point for row in rows for point in _points(row, metric, max(20, MOST_POINTS // len(rows)))]
    if not points:
        return None
    accuracy = metric.endswith(("top1", "top5"))
    shown = ".2%" if accuracy else ".4f"
    drawn = {point["row"] for point in points}
    name = metric.replace("/", "_")
    pick, fade = _legend_pick(name)
    base = alt.Chart(_data(points)).encode(
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
    x_scale = alt.Scale(zero=False, padding=30, type="log" if max(costs) > 20 * min(costs) else "linear")
    pick, fade = _legend_pick(cost)
    base = alt.Chart(_data(points)).encode(
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


def write_pictures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write `curves.png` and `accuracy_vs_flops.png`; one for which nothing was measured is removed, not left stale."""
    written = []
    for name, chart in (("curves.png", _both_curves(comparison)), ("accuracy_vs_flops.png", _accuracy(comparison))):
        path = folder / name
        if chart is None:
            path.unlink(missing_ok=True)
            continue
        path.write_bytes(vl_convert.vegalite_to_png(spec(chart), vl_version(), scale=2, config=PICTURE_THEME))
        written.append(path)
    return written


def charts(comparison: Comparison) -> dict[str, Drawing]:
    """Every chart of the page by its name, those without data left out."""
    built = {
        "val_top1": curves(comparison, "val/top1", "Validation top-1"),
        "train_loss": curves(comparison, "train/loss", "Training loss"),
    }
    built |= {cost: accuracy_against(comparison, cost) for cost in COSTS}
    return {name: chart for name, chart in built.items() if chart is not None}


def spec(chart: Drawing | alt.HConcatChart) -> dict[str, Any]:
    """The chart as a Vega-Lite specification without colours of its own, which `theme` gives."""
    content: dict[str, Any] = chart.to_dict()
    content.pop("config", None)
    return content


def vl_version() -> str:
    """The Vega-Lite version that the charts are written for, as vl-convert names it."""
    return ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])


@cache
def library() -> str:
    """The JavaScript that draws the charts (0.9 MB, a second to put together), as the body of a script element."""
    return vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", vl_version())


def _both_curves(comparison: Comparison) -> alt.HConcatChart | None:
    both = [charts(comparison).get(name) for name in ("val_top1", "train_loss")]
    sized = [chart.properties(width=460, height=300) for chart in both if chart is not None]
    title = alt.Title("Mean over finished seeds", subtitle="Band: lowest to highest seed. Dashed: not comparable.")
    return alt.hconcat(*sized, spacing=40, title=title) if sized else None


def _accuracy(comparison: Comparison) -> Drawing | None:
    chart = accuracy_against(comparison)
    title = alt.Title("Test top-1 against compute", subtitle="Bars: 95% interval over seeds. Hollow: not comparable.")
    return None if chart is None else chart.properties(width=560, height=340, title=title)


def _points(row: Row, metric: str, most: int) -> list[dict[str, Any]]:
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
            "mean": _rounded(Estimate.of(by_epoch[epoch]).mean or 0.0),
            "low": _rounded(min(by_epoch[epoch])),
            "high": _rounded(max(by_epoch[epoch])),
            "seeds": len(by_epoch[epoch]),
            "comparable": row.comparable,
        }
        for epoch in kept
    ]


def _data(points: list[dict[str, Any]]) -> alt.InlineData:
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


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")


def _cost(row: Row, cost: str) -> float | None:
    value = getattr(row, cost) if cost in ("seconds", "images_per_second") else row.known(cost)
    return value.mean if isinstance(value, Estimate) else value


def _colour(rows: list[Row], comparison: Comparison) -> alt.Color:
    """One colour for a row in every chart, in the order of the table."""
    shown = {row.name for row in rows}
    everyone = [row.name for row in comparison.rows if row.finished]
    legend = alt.Legend(values=[name for name in everyone if name in shown])
    return alt.Color("row:N", scale=alt.Scale(domain=everyone), legend=legend)


def _legend_pick(chart: str) -> tuple[alt.Parameter, Any]:
    # Two charts in one picture must not share the name of a parameter.
    pick = alt.selection_point(name=f"pick_{chart}", fields=["row"], bind="legend")
    return pick, _if(pick, 1, 0.12)


def _if(pick: alt.Parameter, chosen: float, otherwise: float) -> Any:
    return alt.condition(pick, alt.value(chosen), alt.value(otherwise))
