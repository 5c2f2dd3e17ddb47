"""The table and the picture of the high-resolution measurement."""

from typing import Any

from infvit.measure.side_chart import against_side
from infvit.tables.numbers import gigabytes
from infvit.tables.table import Column, Table

Row = dict[str, Any]

COLUMNS: list[Column[Row]] = [
    Column("model", lambda row: row["model"], left=True),
    Column("way", lambda row: row["way"], left=True),
    Column("pixels", "{height} × {width}".format_map),
    Column("time", lambda row: row["status"] if row["seconds"] is None else f"{row['seconds']:,.3g} s"),
    Column("peak", lambda row: row["peak"], lambda size: f"{gigabytes(size)} GB"),
    Column("weights", lambda row: row["resident"], lambda size: f"{gigabytes(size)} GB"),
    Column("agrees", lambda row: row["difference"], "{:.0e}".format),
]


def table(rows: list[Row]) -> str:
    """A line for each case, in Markdown that also a terminal of 80 columns shows, and the notes of the cases."""
    notes = ["{model}, {way}, {height} × {width}: {note}".format_map(row) for row in rows if row["note"]]
    return "\n".join([Table(COLUMNS, rows).markdown(), "", *notes]).rstrip()


def plot(rows: list[Row]) -> bytes | None:
    """PNG of peak memory and time against the side of the image, both axes logarithmic; None without two sizes."""
    done = [row for row in rows if row["peak"] is not None]
    if len({row["height"] * row["width"] for row in done}) < 2:
        return None
    several = len({row["model"] for row in done}) > 1
    points = [
        row
        | {"gb": row["peak"] / 1e9, "side": (row["height"] * row["width"]) ** 0.5}
        | {"case": f"{row['model']}, {row['way']}" if several else row["way"]}
        for row in done
    ]
    return against_side(points, {"gb": "peak memory of a process, GB", "seconds": "seconds"})
