"""A table whose columns are declared once and printed as text, Markdown, LaTeX, HTML and CSV."""

import csv
import io
import textwrap
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any, Generic, Literal, TypeVar

from infvit.tables import escape
from infvit.tables.interval import Estimate
from infvit.tables.numbers import NOTHING

Row = TypeVar("Row")
Format = Literal["text", "markdown", "latex", "page"]
WIDTH = 80
"""Columns of a terminal."""
NAME_WIDTH = 20
"""Characters that a terminal of 80 columns keeps for names before it gives up other columns."""


@dataclass(frozen=True)
class Column(Generic[Row]):
    """One column: what it shows of a row, how, and in which formats.

    Attributes:
        heading: printed above the column.
        value: of a row: a number, a text, an `Estimate` or None.
        form: formats a value that is not a text; None is printed as "–".
        key: name of the value in CSV.
        raw: of a row: values under their names in CSV, where `value` is not the raw value.
        order: of a row: what a page sorts by, where that is not `value`.
        left: aligned to the left; on a page sorted from the lowest first.
        ascending: sorted from the lowest first on a page.
        optional: left out if no row has a value.
        note: tooltip of the heading on a page.
        style: of a row: CSS class of the cell on a page.
        formats: that print the column; CSV has all that have a `key` or `raw`.
        priority: a terminal without room leaves out the highest first; a column of priority 0 is always printed.
        place: on a page, from left to right; columns of one place are in the order of their declaration.
        rare: a page shows the column only on request.
    """

    heading: str
    value: Callable[[Row], Any]
    form: Callable[[Any], str] = str
    key: str = ""
    raw: Callable[[Row], dict[str, Any]] | None = None
    order: Callable[[Row], Any] | None = None
    left: bool = False
    ascending: bool = False
    optional: bool = False
    note: str = ""
    style: Callable[[Row], str] = lambda _: ""
    formats: tuple[Format, ...] = ("text", "markdown", "latex", "page")
    priority: int = 0
    place: int = 0
    rare: bool = False

    def cell(self, row: Row) -> str:
        """The value as printed."""
        value = self.value(row)
        return NOTHING if value is None else value if isinstance(value, str) else self.form(value)

    def record(self, row: Row) -> dict[str, Any]:
        """The raw values of a row under their names in CSV; an `Estimate` has three."""
        if self.raw is not None or not self.key:
            return self.raw(row) if self.raw else {}
        value = self.value(row)
        return value.record(self.key) if isinstance(value, Estimate) else {self.key: value}

    def sort_value(self, row: Row) -> Any:
        """What a page sorts the row by; "" where there is nothing."""
        value = self.order(row) if self.order else self.value(row)
        value = value.mean if isinstance(value, Estimate) else value
        return "" if value is None else value


@dataclass(frozen=True)
class Table(Generic[Row]):
    """Rows under columns. A row whose cells are all empty but the first is a heading of the rows below it.

    `remarks` are lines that text prints below a row.
    """

    columns: Sequence[Column[Row]]
    rows: Sequence[Row]
    title: str = ""
    remarks: Callable[[Row], Iterable[str]] = lambda _: ()

    def shown(self, format: Format) -> list[Column[Row]]:
        """The columns that a format prints."""
        columns = [column for column in self._filled() if format in column.formats]
        return sorted(columns, key=lambda column: column.place) if format == "page" else columns

    def _filled(self) -> list[Column[Row]]:
        return [c for c in self.columns if not c.optional or any(c.cell(row) not in ("", NOTHING) for row in self.rows)]

    def text(self, width: int = WIDTH) -> str:
        """The table for a terminal; no line is longer than `width`. Cells may have several lines.

        Where there is no room, columns are left out by their priority; then the spaces in intervals; then the names,
        which are in the first column aligned to the left, are cut.
        """
        columns = self.shown("text")
        lines = [[column.heading for column in columns]]
        lines += [[_printable(column.cell(row)) for column in columns] for row in self.rows]
        name, widths = _name(columns), _widths(lines)
        least = min(widths[name], max(16, width - WIDTH + NAME_WIDTH))
        kept = _that_fit([column.priority for column in columns], [*widths[:name], least, *widths[name + 1 :]], width)
        columns, lines = [columns[i] for i in kept], [[line[i] for i in kept] for line in lines]
        name, widths = _name(columns), _widths(lines)
        if _total(widths) - widths[name] + least > width:
            lines = [[cell.replace(" ± ", "±").replace(" – ", "–") for cell in line] for line in lines]
            widths = _widths(lines)
        widths[name] -= max(0, _total(widths) - width)
        out = wrapped(self.title, width) if self.title else []
        for i, cells in enumerate(lines):
            if _is_heading(cells):
                out += wrapped(cells[0], width)
            else:
                for line in zip_longest(*(cell.split("\n") for cell in cells), fillvalue=""):
                    aligned = zip(line, widths, columns, strict=True)
                    out.append("  ".join(_aligned(cell, room, column.left) for cell, room, column in aligned).rstrip())
            if i == 0:
                out.append("─" * _total(widths))
            else:
                out += [line for remark in self.remarks(self.rows[i - 1]) for line in wrapped(remark, width, 4, 4)]
        return "\n".join(out)

    def markdown(self) -> str:
        """The table in Markdown."""
        columns = self.shown("markdown")
        lines = [[column.heading for column in columns], *([c.cell(row) for c in columns] for row in self.rows)]
        head, *body = ["| " + " | ".join(map(escape.markdown, line)) + " |" for line in lines]
        rule = "|" + "|".join("---" if column.left else "---:" for column in columns) + "|"
        return "\n".join([*([self.title, ""] if self.title else []), head, rule, *body])

    def latex(self, mark: Callable[[Row], str] = lambda _: "") -> str:
        """The table as a tabular of booktabs; a row's `mark` is raised after its first cell."""
        columns = self.shown("latex")
        lines = [rf"\begin{{tabular}}{{{''.join('l' if column.left else 'r' for column in columns)}}}", r"\toprule"]
        lines += [" & ".join(escape.latex(column.heading) for column in columns) + r" \\", r"\midrule"]
        for row in self.rows:
            first, *rest = [escape.latex(column.cell(row)) for column in columns]
            raised = rf"\,$^{{{mark(row)}}}$" if mark(row) else ""
            lines.append(" & ".join([first + raised, *rest]) + r" \\")
        if not self.rows:
            lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{no rows}} \\")
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"])

    def records(self) -> list[dict[str, Any]]:
        """The raw values of every row under flat names."""
        columns = self._filled()
        return [{k: v for column in columns for k, v in column.record(row).items()} for row in self.rows]


def to_csv(records: Sequence[dict[str, Any]]) -> str:
    """Records as CSV text with a line of headings; missing values are empty."""
    out = io.StringIO()
    if records:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return out.getvalue()


def wrapped(text: str, width: int = WIDTH, indent: int = 2, first: int = 0) -> list[str]:
    """The lines of a text for a terminal, those after the first indented."""
    start, rest = " " * first, " " * indent
    lines = textwrap.wrap(escape.printable(text), width, initial_indent=start, subsequent_indent=rest)
    return lines or [start]


def _printable(text: str) -> str:
    return "\n".join(map(escape.printable, text.split("\n")))


def _is_heading(cells: list[str]) -> bool:
    return len(cells) > 1 and not any(cells[1:])


def _widths(lines: list[list[str]]) -> list[int]:
    """The width of each column; the headings of rows reach over all columns."""
    rows = [line for line in lines if not _is_heading(line)]
    return [max(len(line) for cell in column for line in cell.split("\n")) for column in zip(*rows, strict=True)]


def _name(columns: Sequence[Column[Any]]) -> int:
    return next((i for i, column in enumerate(columns) if column.left), 0)


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * len(widths) - 2


def _that_fit(priorities: list[int], widths: list[int], width: int) -> list[int]:
    """The indices of the columns for which a terminal has room."""
    kept = [i for i, priority in enumerate(priorities) if not priority]
    for i in sorted((i for i, priority in enumerate(priorities) if priority), key=lambda i: priorities[i]):
        if _total([widths[j] for j in (*kept, i)]) > width:
            break
        kept.append(i)
    return sorted(kept)


def _aligned(cell: str, width: int, left: bool) -> str:
    if not left:
        return cell.rjust(width)
    return (cell if len(cell) <= width else cell[: width - 1] + "…").ljust(width)
