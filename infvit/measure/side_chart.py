"""Charts of time and memory against the side of the image."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from infvit.tables.theme import to_png


def against_side(points: Sequence[Mapping[str, Any]], fields: Mapping[str, str], title: alt.Title | str = "") -> bytes:
    """PNG with a chart for each field under its title, a line for each "case" against "side", both axes logarithmic.

    A rule connects <field>_low and <field>_high where the points have them.
    """
    log = alt.Scale(type="log", nice=False, padding=15)
    sides = alt.Axis(values=sorted({point["side"] for point in points}), format="d", grid=True)
    base = alt.Chart(alt.InlineData(values=list(points)), width=340, height=300).encode(
        x=alt.X("side:Q", title="side of the image, pixels", scale=log, axis=sides),
        color=alt.Color("case:N", title=None, sort=None),
    )
    charts = []
    for field, heading in fields.items():
        y = alt.Y(f"{field}:Q", title=heading, scale=log, axis=alt.Axis(format=",~g", grid=True, tickCount=6))
        layers = [base.mark_line(point=alt.OverlayMarkDef(size=50, filled=True), strokeWidth=2).encode(y=y)]
        if f"{field}_low" in points[0]:
            layers.append(base.mark_rule(strokeWidth=2).encode(y=alt.Y(f"{field}_low:Q"), y2=f"{field}_high:Q"))
        charts.append(alt.layer(*layers))
    return to_png(alt.hconcat(*charts, spacing=40, title=title))
