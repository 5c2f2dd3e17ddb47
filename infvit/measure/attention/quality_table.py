"""The tables of the attention measurement, for a terminal of 80 columns and in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from infvit.measure.attention.options import Options
from infvit.measure.attention.patch_removal import REMOVALS
from infvit.measure.attention.quality_rows import LOCALISATION, REMOVAL, Rows
from infvit.run.result import Result
from infvit.tables.interval import Estimate
from infvit.tables.numbers import NOTHING, plus_minus
from infvit.tables.table import Column, Table

FLAT = "a flat map"
PUBLISHED = "published"
COSINES = {"cosine_left": ("left", 3, 1), "cosine_right": ("right", 3, 1)}
HEADS = {
    "off": ("off, %", 1, 100),
    "entropy_share": ("entropy", 3, 1),
    "effective_tokens": ("tokens", 1, 1),
    "gamma": ("gamma", 3, 1),
}
SPECTRA = {
    "spectral_radius": ("radius", 3, 1),
    "rank_one": ("rank one, %", 1, 100),
    "rank_one_linear": ("Linear's, %", 1, 100),
}
"""Figures of `Health` by the columns of a table: heading, decimals, factor."""


class Line(NamedTuple):
    """A line of a table: its label, and its cells by figure; None in a heading of the lines below it."""

    label: str
    cells: Mapping[str, str] | None = None


def map_tables(
    rows: Rows, options: Options, boxes: str, published: Mapping[str, Mapping[str, float | None]]
) -> list[Table[Line]]:
    """Faithfulness and localisation of every method of every configuration, in per cent.

    Args:
        rows: of `quality_rows.map_row`, each with the "name" of its configuration.
        options: of the measurement.
        boxes: the source of the boxes; "" without any.
        published: by the name of a configuration, its published scores.
    """
    found = [_of_maps(f"Patches {REMOVALS[options.removal]}, %", rows, REMOVAL, published)]
    if boxes:
        headings = LOCALISATION | {"iou_fixed": f"IoU {options.threshold:g}"}
        found.append(_of_maps(f"Against {boxes} boxes, %", rows, headings, published))
    return found


def layer_tables(rows: Rows) -> list[Table[Line]]:
    """The health of the blocks before and after training, mean over heads, with the lowest and the highest head.

    Args:
        rows: of `quality_rows.layer_rows`, each with the "name" of its configuration.
    """
    titles = {
        "Cosine of Linear-InfSA's weights with A's Perron vectors (published: 0.985), range of heads": COSINES,
        "Heads off, entropy over its largest, tokens that weigh in, discount": HEADS,
        "Spectral radius; variance explained by the best rank one, by Linear-InfSA's": SPECTRA,
    }
    found = [_of_layers(title, rows, headings, headings is COSINES) for title, headings in titles.items()]
    return [table for table in found if table.rows]


def _table(title: str, headings: Mapping[str, str], lines: list[Line]) -> Table[Line]:
    def cell(figure: str) -> Callable[[Line], str | None]:
        return lambda line: "" if line.cells is None else line.cells.get(figure)

    columns: list[Column[Line]] = [Column("", lambda line: line.label, left=True)]
    return Table([*columns, *(Column(heading, cell(figure)) for figure, heading in headings.items())], lines, title)


def _of_maps(
    title: str, rows: Rows, headings: Mapping[str, str], published: Mapping[str, Mapping[str, float | None]]
) -> Table[Line]:
    lines = []
    for name, of_name in _by(rows, "name").items():
        lines.append(Line(_with_seeds(name, of_name)))
        for method, alike in _by(of_name, "method").items():
            cells = {figure: plus_minus(over_seeds(alike, figure), _percent) for figure in headings}
            lines.append(Line(f"  {method}", cells))
        if "roc_auc" in headings:
            guess = Estimate.of(row["guess"] for row in of_name).mean
            flat = {figure: 0.5 if figure == "roc_auc" else guess for figure in headings}
            lines.append(
                Line(f"  {FLAT}", {figure: _percent(value) for figure, value in flat.items() if value is not None})
            )
        known = {figure: value for figure in headings if (value := published.get(name, {}).get(figure)) is not None}
        if known:
            lines.append(Line(f"  {PUBLISHED}", {figure: _percent(value) for figure, value in known.items()}))
    return _table(title, headings, lines)


def _of_layers(title: str, rows: Rows, headings: Mapping[str, tuple[str, int, int]], with_ranges: bool) -> Table[Line]:
    lines = []
    for name, of_name in _by(rows, "name").items():
        if all(row[figure] is None for row in of_name for figure in headings):
            continue
        lines.append(Line(_with_seeds(name, of_name)))
        for block, of_block in _by(of_name, "block").items():
            for when, alike in _by(of_block, "when").items():
                over_heads = [row for row in alike if row["head"] == "all"]
                apart = of_name if block == "all" else alike
                apart = [row for row in apart if row["head"] != "all" and row["when"] == when]
                cells = {}
                for figure, (_, decimals, factor) in headings.items():
                    cells[figure] = plus_minus(over_seeds(over_heads, figure), _decimals(decimals, factor))
                    known = [row[figure] for row in apart if row[figure] is not None]
                    cells[f"{figure} range"] = f"{min(known):.2f} – {max(known):.2f}" if known else NOTHING
                lines.append(Line(f"  {'all' if block == 'all' else f'block {block}'}, {when}", cells))
    shown: dict[str, str] = {}
    for figure, (heading, *_) in headings.items():
        shown |= {figure: heading} | ({f"{figure} range": "heads"} if with_ranges else {})
    return _table(title, shown, lines)


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _decimals(decimals: int, factor: float) -> Callable[[float], str]:
    return lambda value: f"{factor * value:.{decimals}f}"


def _by(rows: Rows, key: str) -> dict[Any, Rows]:
    found: dict[Any, Rows] = {}
    for row in rows:
        found.setdefault(row[key], []).append(row)
    return found


def _with_seeds(name: str, rows: Rows) -> str:
    seeds = len({row["seed"] for row in rows})
    return f"{name}, {seeds} seed{'s' if seeds > 1 else ''}"


def explained(options: Options, runs: Sequence[Result]) -> str:
    """What the figures of the tables are."""
    where = {None: "all blocks", -1: "the last block"}.get(options.block, f"block {options.block}")
    several = len({run.seed for run in runs}) > 1
    over = "over seeds where there are several, else over images" if several else "over images"
    return (
        f"Maps of {where}, enlarged to pixels: {options.upsampling}. MoRF-AOC: the area over the curve of the "
        "predicted class's probability, relative to the intact image's, with the most relevant patches removed first, "
        f"in steps of {options.step:.0%}; LeRF-AUC: that under it with the least relevant first. PR-AUC is average "
        "precision; IoU best is at the threshold that is best for all images together. ± is the half-width of the 95% "
        f"interval (Student's t) {over}."
    )


def over_seeds(rows: Rows, figure: str) -> Estimate:
    """The mean over seeds with its interval; of one seed, the mean over images with theirs."""
    if len(rows) > 1:
        return Estimate.of(row[figure] for row in rows)
    (row,) = rows
    half_width = row.get(f"{figure}_ci95_half_width")
    return Estimate(0 if row[figure] is None else 1, row[figure], half_width)
