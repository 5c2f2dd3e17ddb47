"""The table and the picture of the high-resolution measurement."""

from collections.abc import Sequence
from dataclasses import asdict

import altair as alt

from infvit.measure.highres.case import HighresRow
from infvit.tables.numbers import gigabytes
from infvit.tables.table import Column, Table
from infvit.tables.theme import to_png

COLUMNS: list[Column[HighresRow]] = [
    Column("model", lambda row: row.model, left=True),
    Column("way", lambda row: row.way, left=True),
    Column("pixels", lambda row: f"{row.height}²" if row.height == row.width else f"{row.height}×{row.width}"),
    Column("time", lambda row: row.status if row.seconds is None else f"{row.seconds:,.3g} s"),
    Column("peak", lambda row: row.peak, lambda size: f"{gigabytes(size)} GB"),
    Column("weights", lambda row: row.resident, lambda size: f"{gigabytes(size)} GB"),
    Column("agrees", lambda row: row.difference, "{:.0e}".format),
]


def table(rows: Sequence[HighresRow]) -> str:
    """A line for each case, in Markdown that also a terminal of 80 columns shows, and the notes of the cases."""
    notes = sorted({f"{row.model}, {row.way}, {row.height} × {row.width}: {row.note}" for row in rows if row.note})
    return "\n".join([Table(COLUMNS, rows).markdown(), "", *notes]).rstrip()


def plot(rows: Sequence[HighresRow]) -> bytes | None:
    """PNG of peak memory and time against the side of the image, both axes logarithmic; None without two sizes."""
    done = [(row, row.peak) for row in rows if row.peak is not None]
    if len({row.height * row.width for row, _ in done}) < 2:
        return None
    several = len({row.model for row, _ in done}) > 1
    points = [
        asdict(row)
        | {"gb": peak / 1e9, "side": (row.height * row.width) ** 0.5}
        | {"case": f"{row.model}, {row.way}" if several else row.way}
        for row, peak in done
    ]
    charts = [
        alt.Chart(alt.Data(values=points), width=330, height=300)
        .mark_line(point=True)
        .encode(
            x=alt.X("side:Q", scale=alt.Scale(type="log", base=2), title="side of the image, pixels"),
            y=alt.Y(f"{field}:Q", scale=alt.Scale(type="log"), title=title),
            color=alt.Color("case:N", title=None, sort=None),
        )
        for field, title in {"gb": "peak memory of a process, GB", "seconds": "seconds"}.items()
    ]
    return to_png(alt.hconcat(*charts))
