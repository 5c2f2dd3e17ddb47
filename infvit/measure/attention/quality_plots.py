"""The curves of patch removal: the probability that is left against the share of patches removed."""

from pathlib import Path

import altair as alt

from infvit.measure.attention.quality_rows import Rows, grouped
from infvit.tables.interval import Estimate
from infvit.tables.theme import to_png

ORDERS = {"MoRF": "most relevant first", "LeRF": "least relevant first"}


def write_curves(rows: Rows, removal: str, path: Path) -> None:
    """Writes a PNG: a row of charts for each order, a chart for each configuration, a line for each method.

    Lines are means over seeds. `removal` is how patches are removed, in words.
    """
    points = [
        {"name": name, "method": method, "order": ORDERS[order], "share": share}
        | {"kept": Estimate.of(row["kept"] for row in seeds).mean}
        for (name, method, order, share), seeds in grouped(rows, "name", "method", "order", "share").items()
    ]
    names = list(dict.fromkeys(row["name"] for row in rows))
    chart = (
        alt.Chart(alt.InlineData(values=points))
        .mark_line(strokeWidth=2)
        .encode(
            x=alt.X("share:Q", title="share of patches removed", axis=alt.Axis(format="%", grid=True)),
            y=alt.Y("kept:Q", title="probability kept", axis=alt.Axis(format="%", grid=True)),
            # The theme's legends show points; these lines have none.
            color=alt.Color("method:N", sort=None, legend=alt.Legend(symbolType="stroke", symbolStrokeWidth=3)),
            strokeDash=alt.StrokeDash("method:N", sort=None),
        )
        .properties(width=max(220, 660 // len(names)), height=220)
        .facet(
            row=alt.Row("order:N", sort=list(ORDERS.values()), title=None),
            column=alt.Column("name:N", sort=names, title=None),
            title=alt.Title(
                f"Patches {removal}", subtitle="Probability of the class of the intact image, over its own."
            ),
        )
    )
    path.write_bytes(to_png(chart))
