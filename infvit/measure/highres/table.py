"""The table and the picture of `infvit.measure.highres`."""

from collections.abc import Sequence
from dataclasses import asdict

import altair
import vl_convert

from infvit.measure.highres.case import HighresRow


def table(rows: Sequence[HighresRow]) -> str:
    """One line a case, in Markdown that is read in a terminal of 80 columns."""
    lines = ["| model | way | pixels | time | peak | weights | agrees |", "|---|---|---:|---:|---:|---:|---:|"]
    for row in rows:
        pixels = f"{row.height}²" if row.height == row.width else f"{row.height}×{row.width}"
        if row.seconds is None or row.peak is None or row.resident is None:
            figures = f"{row.status} | | | "
        else:
            agrees = "–" if row.difference is None else f"{row.difference:.0e}"
            figures = f"{row.seconds:,.3g} s | {_gb(row.peak)} | {_gb(row.resident)} | {agrees}"
        lines.append(f"| {row.model} | {row.way} | {pixels} | {figures} |")
    notes = sorted({f"{row.model}, {row.way}, {row.height} × {row.width}: {row.note}" for row in rows if row.note})
    return "\n".join([*lines, "", *notes]).rstrip()


def plot(rows: Sequence[HighresRow]) -> bytes | None:
    """PNG of peak memory and time against the side of the image, both axes logarithmic; None without two sizes."""
    done = [row for row in rows if row.peak is not None]
    if len({row.height * row.width for row in done}) < 2:
        return None
    several = len({row.model for row in done}) > 1
    points = [
        asdict(row) | {"gb": row.peak / 1e9, "side": (row.height * row.width) ** 0.5}
        for row in done
        if row.peak is not None
    ]
    for point, row in zip(points, done, strict=True):
        point["case"] = f"{row.model}, {row.way}" if several else row.way
    charts = [
        altair.Chart(altair.Data(values=points), width=330, height=300)
        .mark_line(point=True)
        .encode(
            x=altair.X("side:Q", scale=altair.Scale(type="log", base=2), title="side of the image, pixels"),
            y=altair.Y(f"{field}:Q", scale=altair.Scale(type="log"), title=title),
            color=altair.Color("case:N", title=None, sort=None),
        )
        for field, title in {"gb": "peak memory of a process, GB", "seconds": "seconds"}.items()
    ]
    return vl_convert.vegalite_to_png(altair.hconcat(*charts).to_dict(), scale=2)


def _gb(size: int) -> str:
    return f"{size / 1e9:.2f} GB"
