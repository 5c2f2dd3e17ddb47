"""Time and memory against resolution, both axes logarithmic: one picture for each pass."""

from pathlib import Path

import altair as alt

from infvit.measure.efficiency.case import Case, Efficiency, exponents
from infvit.measure.efficiency.table import TITLES
from infvit.tables.theme import to_png


def write_plots(result: Efficiency, folder: Path) -> list[Path]:
    """Writes efficiency_forward.png and efficiency_training.png, each if something was timed."""
    written = []
    for kind in dict.fromkeys(case.kind for case in result.cases):
        timed = [case for case in result.cases if case.kind == kind and case.timed]
        if timed:
            path = folder / f"efficiency_{kind}.png"
            path.write_bytes(to_png(_both(result, kind, timed)))
            written.append(path)
    return written


def _both(result: Efficiency, kind: str, timed: list[Case]) -> alt.HConcatChart:
    fits = exponents(result.cases, kind)
    names = {m: f"{m}, time ~ tokens^{fits[m]:.2f}" if m in fits else m for m in dict.fromkeys(c.model for c in timed)}
    points = [
        {
            "model": names[case.model],
            "resolution": case.resolution,
            "ms": 1e3 * case.time.median,
            "low": 1e3 * case.time.low,
            "high": 1e3 * case.time.high,
            "bytes": case.added_bytes,
        }
        for case in timed
        if case.time
    ]
    sides = sorted({case.resolution for case in timed})
    base = alt.Chart(alt.InlineData(values=points), width=340, height=300).encode(
        x=alt.X(
            "resolution:Q",
            title="side of the image, pixels",
            scale=alt.Scale(type="log", nice=False, padding=15),
            axis=alt.Axis(values=sides, format="d", grid=True),
        ),
        color=alt.Color("model:N", scale=alt.Scale(domain=list(names.values()))),
    )
    log = alt.Scale(type="log", nice=False, padding=15)
    memory_of = "GPU memory" if result.setting.device == "cuda" else "memory beyond the libraries'"
    lines = base.mark_line(point=alt.OverlayMarkDef(size=50, filled=True), strokeWidth=2)
    spread = base.mark_rule(strokeWidth=2).encode(y=alt.Y("low:Q", scale=log, title="ms"), y2="high:Q")
    time = alt.layer(spread, lines.encode(y=alt.Y("ms:Q", scale=log, title="ms", axis=_axis(",~g"))))
    memory = lines.encode(y=alt.Y("bytes:Q", scale=log, title=f"peak {memory_of}, bytes", axis=_axis("~s")))
    setting = result.setting
    return alt.hconcat(
        time,
        memory,
        spacing=40,
        title=alt.Title(
            f"{TITLES[kind]}; {result.size}, batch {setting.batch_size}, {setting.precision}, {setting.device}",
            subtitle=[
                f"Median of {result.rounds} rounds, line from smallest to largest.",
                "A line ends where its model ran out of memory or time.",
            ],
        ),
    )


def _axis(form: str) -> alt.Axis:
    return alt.Axis(format=form, grid=True, tickCount=6)
