"""Every chart of a comparison for the page, and some as PNG beside it."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import altair as alt
import vl_convert

from infvit.compare.charts import COSTS, Drawing, accuracy_against, accuracy_bars, curves, gamma_by_block, paired_top1
from infvit.compare.table import Comparison
from infvit.tables.theme import PICTURE_THEME

PICTURES = ("accuracy.png", "accuracy_vs_flops.png", "curves.png")


def write_pictures(comparison: Comparison, folder: Path) -> list[Path]:
    """Write the `PICTURES`; one for which nothing was measured is removed, not left stale."""
    written = []
    drawn = (_bars(comparison), _accuracy(comparison), _both_curves(comparison))
    for name, chart in zip(PICTURES, drawn, strict=True):
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
        "accuracy": accuracy_bars(comparison),
        "paired": paired_top1(comparison),
        "val_top1": curves(comparison, "val/top1", "Validation top-1"),
        "train_loss": curves(comparison, "train/loss", "Training loss"),
        "gamma": gamma_by_block(comparison),
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


def _bars(comparison: Comparison) -> alt.HConcatChart | None:
    both = [chart for chart in (accuracy_bars(comparison), paired_top1(comparison)) if chart is not None]
    sized = [chart.properties(width=360, height=alt.Step(28)) for chart in both]
    title = alt.Title("Test top-1", subtitle="Lines: 95% intervals over seeds. The difference is paired by seed.")
    return alt.hconcat(*sized, spacing=40, title=title) if sized else None


def _both_curves(comparison: Comparison) -> alt.HConcatChart | None:
    both = [charts(comparison).get(name) for name in ("val_top1", "train_loss")]
    sized = [chart.properties(width=460, height=300) for chart in both if chart is not None]
    title = alt.Title("Mean over finished seeds", subtitle="Band: lowest to highest seed. Dashed: not comparable.")
    return alt.hconcat(*sized, spacing=40, title=title) if sized else None


def _accuracy(comparison: Comparison) -> Drawing | None:
    chart = accuracy_against(comparison)
    title = alt.Title("Test top-1 against compute", subtitle="Bars: 95% interval over seeds. Hollow: not comparable.")
    return None if chart is None else chart.properties(width=560, height=340, title=title)
