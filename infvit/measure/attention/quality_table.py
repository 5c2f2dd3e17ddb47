"""The tables of the attention measurement, for a terminal of 80 columns and in Markdown."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from infvit.measure.attention.options import Options
from infvit.measure.attention.outputs import TOLERANCE
from infvit.measure.attention.patch_removal import REMOVALS
from infvit.measure.attention.quality_rows import LOCALISATION, REMOVAL, Rows, grouped, over_seeds
from infvit.run.result import Result
from infvit.tables.interval import Estimate
from infvit.tables.numbers import plus_minus
from infvit.tables.table import Column, Table

Form = Callable[[float], str]


def decimals(digits: int, factor: int = 1) -> Form:
    """Formats a number times a factor with a fixed number of digits."""
    return lambda value: f"{factor * value:.{digits}f}"


LAYERS: dict[str, dict[str, tuple[str, Form]]] = {
    "Output over tokens: effective rank, collisions of different queries, own share of the update": {
        "effective_rank": ("rank", decimals(2)),
        "collisions": ("collisions, %", decimals(1, 100)),
        "own_share": ("own, %", decimals(1, 100)),
    },
    "Cosine of Linear-InfSA's weights with A's Perron vectors (published: 0.985), range of heads": {
        "cosine_left": ("left", decimals(3)),
        "cosine_left range": ("heads", str),
        "cosine_right": ("right", decimals(3)),
        "cosine_right range": ("heads", str),
        "cosine_kernel": ("kernel, left", decimals(3)),
    },
    "Heads off, entropy over its largest, tokens that weigh in, discount": {
        "off": ("off, %", decimals(1, 100)),
        "entropy_share": ("entropy", decimals(3)),
        "effective_tokens": ("tokens", decimals(1)),
        "gamma": ("gamma", decimals(3)),
    },
    "Spectral radius; variance explained by the best rank one, by Linear-InfSA's": {
        "spectral_radius": ("radius", decimals(3)),
        "rank_one": ("rank one, %", decimals(1, 100)),
        "rank_one_linear": ("Linear's, %", decimals(1, 100)),
        "near_singular": ("near 1, %", decimals(1, 100)),
    },
}
"""The tables of layers: title, and figures of `Outputs` and `Health` with their headings and formats."""


class Line(NamedTuple):
    """A line of a table: its label, and estimates or texts by figure; None in a heading of the lines below it."""

    label: str
    values: Mapping[str, Any] | None = None


def map_tables(rows: Rows, options: Options, boxes: str) -> list[Table[Line]]:
    """Faithfulness and localisation of every method of every configuration, in per cent.

    `rows` are of `quality_rows.map_row`; `boxes` is the source of the boxes, "" without any.
    """
    titles = {f"Patches {REMOVALS[options.removal]}, %": REMOVAL}
    if boxes:
        titles[f"Against {boxes} boxes, %"] = LOCALISATION | {"iou_fixed": f"IoU {options.threshold:g}"}
    tables = []
    for title, headings in titles.items():
        lines = []
        for (name,), of_name in grouped(rows, "name").items():
            lines.append(_heading(name, of_name))
            for (method,), alike in grouped(of_name, "method").items():
                lines.append(Line(f"  {method}", {figure: over_seeds(alike, figure) for figure in headings}))
            if "roc_auc" in headings:
                guess = Estimate.of(row["guess"] for row in of_name).mean
                lines.append(Line("  a flat map", dict.fromkeys(headings, guess) | {"roc_auc": 0.5}))
        columns = {figure: (heading, decimals(1, 100)) for figure, heading in headings.items()}
        tables.append(_table(title, columns, lines))
    return [table for table in tables if table.rows]


def layer_tables(rows: Rows) -> list[Table[Line]]:
    """The health of the blocks before and after training, mean over heads, with the lowest and the highest head.

    `rows` are of `quality_rows.layer_rows`.
    """
    tables = []
    for title, columns in LAYERS.items():
        lines = []
        for (name,), of_name in grouped(rows, "name").items():
            if all(row.get(figure) is None for row in of_name for figure in columns):
                continue
            lines.append(_heading(name, of_name))
            for (block,), of_block in grouped(of_name, "block").items():
                for (when,), alike in grouped(of_block, "when").items():
                    apart = [row for row in (of_name if block == "all" else alike) if row["head"] != "all"]
                    ranges = _ranges([row for row in apart if row["when"] == when], columns)
                    over_heads = [row for row in alike if row["head"] == "all"]
                    means = {figure: over_seeds(over_heads, figure) for figure in columns if figure not in ranges}
                    label = f"  {'all' if block == 'all' else f'block {block}'}, {when}"
                    lines.append(Line(label, means | ranges))
        tables.append(_table(title, columns, lines))
    return [table for table in tables if table.rows]


def _ranges(rows: Rows, columns: Mapping[str, Any]) -> dict[str, str | None]:
    """The lowest and the highest value of the rows, for every column that is a range."""
    ranges: dict[str, str | None] = {}
    for name in columns:
        if name.endswith(" range"):
            known = [row[figure] for row in rows if row[figure := name.removesuffix(" range")] is not None]
            ranges[name] = f"{min(known):.2f} – {max(known):.2f}" if known else None
    return ranges


def _table(title: str, columns: Mapping[str, tuple[str, Form]], lines: list[Line]) -> Table[Line]:
    def value(figure: str, line: Line) -> Any:
        return "" if line.values is None else line.values.get(figure)

    def form(number: Form, found: Estimate | float) -> str:
        return plus_minus(found, number) if isinstance(found, Estimate) else number(found)

    label = Column[Line]("", lambda line: line.label, left=True)
    shown = [Column(head, partial(value, figure), partial(form, number)) for figure, (head, number) in columns.items()]
    return Table([label, *shown], lines, title)


def _heading(name: str, rows: Rows) -> Line:
    seeds = len({row["seed"] for row in rows})
    return Line(f"{name}, {seeds} seed{'s' if seeds > 1 else ''}")


def explained(options: Options, runs: Sequence[Result]) -> str:
    """What the figures of the tables are."""
    where = {None: "all blocks", -1: "the last block"}.get(options.block, f"block {options.block}")
    several = len({run.seed for run in runs}) > 1
    over = "over seeds where there are several, else over images" if several else "over images"
    return (
        "The effective rank of a layer's output is exp(entropy) of its singular values over their sum; collisions are "
        f"pairs of tokens with different queries and equal outputs, up to {TOLERANCE:g} of their norm; own: the share "
        "of the output's square that differs from the mean over tokens. "
        f"Maps of {where}, enlarged to pixels: {options.upsampling}. MoRF-AOC: the area over the curve of the "
        "predicted class's probability, relative to the intact image's, with the most relevant patches removed first, "
        f"in steps of {options.step:.0%}; LeRF-AUC: that under it with the least relevant first. PR-AUC is average "
        "precision; IoU best is at the threshold that is best for all images together. ± is the half-width of the 95% "
        f"interval (Student's t) {over}."
    )
