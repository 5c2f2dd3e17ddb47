"""A comparison as text, Markdown, LaTeX and CSV, and all files of a comparison."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from infvit.compare.charts import PICTURES, write_pictures
from infvit.compare.columns import records, table
from infvit.compare.comparison import Comparison
from infvit.compare.notes import FLOPS, explanations, problems, provenance, remarks, shared, unfinished
from infvit.compare.page import to_html
from infvit.errors import UsageError
from infvit.run.files import atomic_write
from infvit.tables import escape
from infvit.tables.table import WIDTH, to_csv, wrapped

FILES = (*(f"comparison.{ending}" for ending in ("html", "md", "csv", "tex")), *PICTURES)

LATEX_HEAD = r"""% Made by python -m infvit.compare. In the preamble: \usepackage{booktabs,graphicx}
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


def write_comparison(
    run_dirs: Iterable[str | Path], out_dir: str | Path, baseline: str | None = None, **options: Any
) -> Comparison:
    """Compares the runs in the folders and writes `FILES` into `out_dir`; without a finished run there are no pictures.

    `baseline` is as in `Comparison.from_results`, `options` are `Comparison`'s `margin` and `curve_epochs`.
    """
    comparison = replace(Comparison.from_dirs(run_dirs, baseline), **options)
    out = Path(out_dir)
    texts = {"html": to_html(comparison, out), "md": to_markdown(comparison), "tex": to_latex(comparison)}
    texts["csv"] = to_csv(records(comparison))
    try:
        out.mkdir(parents=True, exist_ok=True)
        texts["md"] += "".join(f"\n![{name}]({name})\n" for name in write_pictures(comparison, out))
        for ending, text in texts.items():
            atomic_write(out / f"comparison.{ending}", text)
    except OSError as error:
        raise UsageError(f"{out}: the comparison cannot be written there: {error.strerror or error}") from error
    return comparison


def to_text(comparison: Comparison, width: int = WIDTH) -> str:
    """The comparison for a terminal: as many columns as fit, the rest left to the files."""
    notes = [*_notes(comparison), *explanations(comparison)]
    above, below = ([line for text in texts for line in wrapped(text, width)] for texts in (shared(comparison), notes))
    return "\n".join([*above, table(comparison).text(width), "", *below]) + "\n"


def to_markdown(comparison: Comparison) -> str:
    """The comparison in Markdown: what was compared, the table, and its notes."""
    lines = ["# Comparison", "", *(f"- {name}: {escape.markdown(value)}" for name, value in provenance(comparison))]
    lines += ["", table(comparison).markdown(), ""]
    lines += [escape.markdown(" ".join([*explanations(comparison), FLOPS])), ""]
    lines += [f"- {escape.markdown(line)}" for line in _notes(comparison)]
    return "\n".join(lines).rstrip() + "\n"


def to_latex(comparison: Comparison) -> str:
    r"""The comparison as a LaTeX table with its notes below, to \input into a paper.

    It needs booktabs and graphicx and no other package or font encoding.
    """
    different = dict.fromkeys(row.differs for row in comparison.rows if row.differs)
    marks = {differs: str(mark) for mark, differs in enumerate(different, 1)}
    notes = [escape.latex(line, breakable=True) for line in shared(comparison)]
    for differs, mark in marks.items():
        notes.append(rf"$^{{{mark}}}$ not comparable: {escape.latex('; '.join(differs), breakable=True)}")
    notes += [escape.latex(line, breakable=True) for line in _notes(comparison)]
    notes.append(escape.latex(" ".join([*explanations(comparison), FLOPS])))
    tabular = table(comparison).latex(lambda row: marks.get(row.differs, ""))
    lines = [LATEX_HEAD + tabular + "}", r"\par\medskip", r"\begin{minipage}{\textwidth}\raggedright\scriptsize"]
    return "\n".join([*lines, *(line + r"\par" for line in notes), r"\end{minipage}", r"\end{table*}"]) + "\n"


def _notes(comparison: Comparison) -> list[str]:
    return [*problems(comparison), *unfinished(comparison), *remarks(comparison)]
