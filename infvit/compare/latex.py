"""A comparison as a LaTeX table (booktabs) to \\input into a paper."""

from __future__ import annotations

import re
import unicodedata
from string import ascii_lowercase

from infvit.compare import render
from infvit.compare.table import Comparison, Row

HEAD = r"""% Made by python -m infvit.compare. In the preamble: \usepackage{booktabs,graphicx}
\begin{table*}[tbp]
\centering
\footnotesize
\caption{Means over seeds with their 95\% intervals.}
\label{tab:comparison}
\setlength{\tabcolsep}{4pt}
\smallskip
% As wide as the page at most.
\resizebox{\ifdim\width>\textwidth\textwidth\else\width\fi}{!}{%
"""
# A page is not as wide as a screen.
LEFT_OUT = ("comparable", "top-5 %", "test loss", "training")
ESCAPED = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    # In the fonts of plain LaTeX these are other characters, or two of them become one.
    "<": "$<$",
    ">": "$>$",
    "|": "$|$",
    '"': "{''}",
    "`": "{`}",
    "±": r"$\pm$",
    "×": r"$\times$",
    "≠": r"$\neq$",
    "Δ": r"$\Delta$",
    "−": r"$-$",
    "–": r"\textendash{}",
    "…": r"\ldots{}",
    "²": r"$^2$",
    "#": r"\#",
    "$": r"\$",
    "%": r"\%",
    "&": r"\&",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
}


def to_latex(comparison: Comparison) -> str:
    """The table with its notes below: what all rows share, what differs, what failed, still runs or could not be read.

    Top-5, loss and training time are left to the other formats. It needs `booktabs` and `graphicx` and no other package
    or font encoding; a letter that plain LaTeX does not have loses its accent or becomes "?".
    """
    columns = {name: cell for name, cell in render.columns(comparison).items() if name not in LEFT_OUT}
    marks = _marks(comparison.rows)
    lines = [HEAD + rf"\begin{{tabular}}{{l{'r' * (len(columns) - 1)}}}"]
    lines += [r"\toprule", " & ".join(escaped(name) for name in columns) + r" \\", r"\midrule"]
    for row in comparison.rows:
        cells = [escaped(cell(row)) for cell in columns.values()]
        if row.differs:
            cells[0] += rf"\,$^{{{marks[row.differs]}}}$"
        lines.append(" & ".join(cells) + r" \\")
    if not comparison.rows:
        lines.append(rf"\multicolumn{{{len(columns)}}}{{l}}{{no readable run}} \\")
    lines += [r"\bottomrule", r"\end{tabular}}"]
    below = [_breakable(line) for line in render.shared(comparison)]
    below += [rf"$^{{{mark}}}$ not comparable: {_breakable('; '.join(differs))}" for differs, mark in marks.items()]
    below += [_breakable(f"unreadable: {bad.path}: {bad.reason}") for bad in comparison.unreadable]
    remarks = (*render.failures(comparison), *render.unfinished(comparison), *render.notes(comparison))
    below += [_breakable(line) for line in remarks]
    below.append(escaped(" ".join((*render.explained(comparison), render.FLOPS))))
    lines += [r"\par\medskip", r"\begin{minipage}{\textwidth}\raggedright\scriptsize"]
    lines += [line + r"\par" for line in below] + [r"\end{minipage}", r"\end{table*}"]
    return "\n".join(lines) + "\n"


def escaped(text: str) -> str:
    """Text that LaTeX prints as it is, in one line."""
    # Hyphens side by side would become a dash.
    return re.sub("-(?=-)", "-{}", "".join(ESCAPED.get(char) or _letter(char) for char in text))


def _breakable(text: str) -> str:
    """A line with names of files in it, which may be broken at their slashes and underscores."""
    return escaped(text).replace(r"\_", r"\_\allowbreak{}").replace("/", r"/\allowbreak{}")


def _letter(char: str) -> str:
    if char.isascii():
        return char if char.isprintable() else " "
    plain = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    return "".join(ESCAPED.get(c, c) for c in plain) or ("" if unicodedata.combining(char) else "?")


def _marks(rows: tuple[Row, ...]) -> dict[tuple[str, ...], str]:
    """A letter for each way to differ: a, b, ..., z, aa, ab, ..."""
    ways = dict.fromkeys(row.differs for row in rows if row.differs)
    n = len(ascii_lowercase)
    return {way: (ascii_lowercase[i // n - 1] if i >= n else "") + ascii_lowercase[i % n] for i, way in enumerate(ways)}
