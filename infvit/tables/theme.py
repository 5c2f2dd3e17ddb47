"""The colours of charts in light, dark and print, and charts as Vega-Lite and PNG."""

from functools import cache
from typing import Any

import altair as alt
import vl_convert

LIGHT = ["#3366cc", "#e07b00", "#139a74", "#c2438f", "#0f9fc4", "#d0432f", "#7a57c9", "#8a7a12", "#6b7280", "#a0522d"]
LIGHT += ["#1f8a3b", "#5b6bd6", "#b8870b", "#9c2f6f", "#2b7a78", "#c96f4a"]
DARK = ["#7ba4ff", "#ffb052", "#3ed1a4", "#f287c3", "#58cdf0", "#ff8a75", "#b499ff", "#d6c24a", "#a8b0bd", "#d9986c"]
DARK += ["#79d279", "#a3aefc", "#e8c15a", "#e08cc0", "#76cfcb", "#f3a98a"]
VEGA_LITE = ".".join(alt.SCHEMA_VERSION.removeprefix("v").split(".")[:2])
"""The version that altair writes charts for, in vl-convert's notation."""


def theme(text: str, faint: str, palette: list[str], background: str) -> dict[str, Any]:
    """The Vega-Lite configuration that gives a chart its colours; charts themselves name none."""
    axis = {"labelColor": text, "titleColor": text, "gridColor": faint, "domainColor": faint, "tickColor": faint}
    return {
        "background": background,
        "view": {"stroke": None},
        "axis": axis | {"titleFontWeight": 500, "titleFontSize": 12, "labelFontSize": 11, "titlePadding": 10},
        "axisX": {"grid": False, "tickCount": 7},
        # Error bars, the line at zero, and the numbers beyond an axis.
        "rule": {"color": text},
        "tick": {"color": text},
        "text": {"color": text},
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


def specification(chart: alt.TopLevelMixin) -> dict[str, Any]:
    """The chart as a Vega-Lite specification without a configuration of its own: `theme` gives colours."""
    content: dict[str, Any] = chart.to_dict(validate=False)  # constructors have validated the parts
    content.pop("config", None)
    return content


def to_png(chart: alt.TopLevelMixin) -> bytes:
    """The chart as PNG, two pixels to a point."""
    content: bytes = vl_convert.vegalite_to_png(specification(chart), VEGA_LITE, scale=2, config=PICTURE_THEME)
    return content


@cache
def vega_embed() -> str:
    """The JavaScript that draws charts in a page (0.9 MB, takes a second), as the body of a script element."""
    return str(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE))
