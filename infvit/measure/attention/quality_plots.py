"""The curves of patch removal, and accuracy against the rank of what the layers put out, as pictures."""

from pathlib import Path

import altair as alt

from infvit.measure.attention.quality_rows import Rows, grouped
from infvit.tables.interval import Estimate
from infvit.tables.theme import to_png

ORDERS = {"MoRF": "most relevant first", "LeRF": "least relevant first"}


def write_curves(rows: Rows, removal: str, path: Path) -> None:
    """Writes a PNG: a row of charts for each order, a chart for each configuration, a line for each method.

    Lines are means over seeds. `removal` is how patches are removed, in words. Without rows nothing is written.
    """
    if not rows:
        return
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


def write_ranks(rows: Rows, path: Path) -> None:
    """Writes a PNG: top-1 against the effective rank of the trained layers' outputs, a point for each configuration.

    Both are means over seeds, the rank also over blocks and images. Without an accuracy nothing is written.
    """
    known = [
        r for r in rows if (r["when"], r["block"], r["head"]) == ("trained", "all", "all") and r["top1"] is not None
    ]
    points = [
        {"name": name, **{key: Estimate.of(row[key] for row in seeds).mean for key in ("effective_rank", "top1")}}
        for (name,), seeds in grouped(known, "name").items()
    ]
    if not points:
        return
    base = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("effective_rank:Q", title="effective rank, mean over layers", scale=alt.Scale(zero=False, padding=30)),
        y=alt.Y("top1:Q", title="top-1", axis=alt.Axis(format="%", grid=True), scale=alt.Scale(zero=False, padding=20)),
    )
    chart = base.mark_point(filled=True, size=60) + base.mark_text(align="left", dx=7).encode(text="name:N")
    title = alt.Title(
        "Accuracy against the rank of what a layer gives its tokens", subtitle="1: all tokens get one vector."
    )
    path.write_bytes(to_png(chart.properties(width=560, height=340, title=title)))
