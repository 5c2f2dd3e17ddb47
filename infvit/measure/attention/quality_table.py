"""The tables of `infvit.measure.attention.quality`, for a terminal of 80 columns and in Markdown."""

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from infvit.measure.attention.options import Options
from infvit.measure.attention.patch_removal import REMOVALS
from infvit.measure.attention.quality_rows import LOCALISATION, REMOVAL, Rows
from infvit.run.result import Result
from infvit.tables.interval import Estimate

TERMINAL = 80
NOTHING = "–"
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


class Table(NamedTuple):
    """Cells by rows, the first of which are the headings and the first column what the row is of."""

    title: str
    cells: list[list[str]]

    def text(self) -> str:
        """Columns aligned, two spaces between them; the name of a configuration may reach over all of them.

        Where that is wider than a terminal, the spaces around ± go.
        """
        cells = self.cells
        if sum(_widths(cells)) + 2 * len(cells[0]) - 2 > TERMINAL:
            cells = [[row[0], *(cell.replace(" ± ", "±").replace(" – ", "–") for cell in row[1:])] for row in cells]
        widths = _widths(cells)
        lines = []
        for first, *rest in cells:
            aligned = [cell.rjust(width) for cell, width in zip(rest, widths[1:], strict=True)]
            lines.append("  ".join([first.ljust(widths[0]), *aligned]).rstrip())
        lines.insert(1, "─" * (sum(widths) + 2 * len(widths) - 2))
        return "\n".join([*textwrap.wrap(self.title, TERMINAL - 1), *lines])

    def markdown(self) -> str:
        """The same as Markdown."""
        head, *rows = self.cells
        rule = ["---"] + ["---:"] * (len(head) - 1)
        return "\n".join([self.title, "", *("| " + " | ".join(row) + " |" for row in (head, rule, *rows))])


def _widths(cells: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*(row for row in cells if any(row[1:])), strict=True)]


def map_tables(
    rows: Rows, options: Options, boxes: str, published: Mapping[str, Mapping[str, float | None]]
) -> list[Table]:
    """Faithfulness and localisation, every method of every configuration, in per cent.

    Args:
        rows: of `quality_rows.map_row`, each with the "name" of its configuration.
        options: of the measurement.
        boxes: whose they are; "" without any.
        published: by the name of a configuration, what others say of it.
    """
    found = [_of_maps(f"Patches {REMOVALS[options.removal]}, %", rows, REMOVAL, published)]
    if boxes:
        headings = LOCALISATION | {"iou_fixed": f"IoU {options.threshold:g}"}
        found.append(_of_maps(f"Against {boxes} boxes, %", rows, headings, published))
    return found


def layer_tables(rows: Rows) -> list[Table]:
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
    return [table for table in found if len(table.cells) > 1]


def _of_maps(
    title: str, rows: Rows, headings: Mapping[str, str], published: Mapping[str, Mapping[str, float | None]]
) -> Table:
    cells = [["", *headings.values()]]
    for name, of_name in _by(rows, "name").items():
        cells.append([_with_seeds(name, of_name), *[""] * len(headings)])
        for method, alike in _by(of_name, "method").items():
            cells.append([f"  {method}", *(shown(over_seeds(alike, figure), 1, 100) for figure in headings)])
        if "roc_auc" in headings:
            guess = Estimate.of(row["guess"] for row in of_name)
            flat = [Estimate(1, 0.5) if figure == "roc_auc" else guess for figure in headings]
            cells.append(
                [f"  {FLAT}", *(f"{100 * estimate.mean:.1f}" for estimate in flat if estimate.mean is not None)]
            )
        known = [published.get(name, {}).get(figure) for figure in headings]
        if any(value is not None for value in known):
            cells.append([f"  {PUBLISHED}", *(NOTHING if value is None else f"{100 * value:.1f}" for value in known)])
    return Table(title, cells)


def _of_layers(title: str, rows: Rows, headings: Mapping[str, tuple[str, int, int]], ranges: bool) -> Table:
    """Headings by the names of figures: the words, decimals, and a factor."""
    cells = [["", *(word for title, *_ in headings.values() for word in ([title, "heads"] if ranges else [title]))]]
    for name, of_name in _by(rows, "name").items():
        if all(row[figure] is None for row in of_name for figure in headings):
            continue
        cells.append([_with_seeds(name, of_name), *[""] * (len(cells[0]) - 1)])
        for block, of_block in _by(of_name, "block").items():
            for when, alike in _by(of_block, "when").items():
                line = ["  all" if block == "all" else f"  block {block}"]
                line = [f"{line[0]}, {when}"]
                together = [row for row in alike if row["head"] == "all"]
                apart = of_name if block == "all" else alike
                apart = [row for row in apart if row["head"] != "all" and row["when"] == when]
                for figure, (_, decimals, factor) in headings.items():
                    line.append(shown(over_seeds(together, figure), decimals, factor))
                    if ranges:
                        known = [row[figure] for row in apart if row[figure] is not None]
                        line.append(f"{min(known):.2f} – {max(known):.2f}" if known else NOTHING)
                cells.append(line)
    return Table(title, cells)


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


def shown(estimate: Estimate, decimals: int, factor: float = 1) -> str:
    """A mean with the half-width of its interval, each times `factor`."""
    if estimate.mean is None:
        return NOTHING
    half = NOTHING if estimate.half_width is None else f"{factor * estimate.half_width:.{decimals}f}"
    return f"{factor * estimate.mean:.{decimals}f} ± {half}"
