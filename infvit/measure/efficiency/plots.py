"""Time and memory against resolution: one picture for each pass."""

from pathlib import Path

import altair as alt

from infvit.measure.efficiency.case import Efficiency, exponents
from infvit.measure.efficiency.table import TITLES
from infvit.measure.side_chart import against_side


def write_plots(result: Efficiency, folder: Path) -> None:
    """Writes efficiency_forward.png and efficiency_training.png, each if something was timed."""
    setting = result.setting
    memory = "GPU memory" if setting.device == "cuda" else "memory beyond the libraries'"
    subtitle = [
        f"Median of {result.rounds} rounds, line from smallest to largest.",
        "A line ends where its model ran out of memory or time.",
    ]
    for kind in dict.fromkeys(case.kind for case in result.cases):
        fits = exponents(result.cases, kind)
        points = [
            {
                "case": f"{case.model}, time ~ tokens^{fits[case.model]:.2f}" if case.model in fits else case.model,
                "side": case.resolution,
                "ms": 1e3 * time.median,
                "ms_low": 1e3 * time.low,
                "ms_high": 1e3 * time.high,
                "GB": (case.added_bytes or 0) / 1e9,
            }
            for case in result.cases
            if case.kind == kind and (time := case.time)
        ]
        if points:
            about = f"{result.size}, batch {setting.batch_size}, {setting.precision}, {setting.device}"
            title = alt.Title(f"{TITLES[kind]}; {about}", subtitle=subtitle)
            picture = against_side(points, {"ms": "ms", "GB": f"peak {memory}, GB"}, title)
            (folder / f"efficiency_{kind}.png").write_bytes(picture)
