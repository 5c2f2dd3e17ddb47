"""From the `result.json` of many runs to one table: means and intervals over seeds, and what does not compare.

    comparison = write_comparison(["runs/2025-11-24"], "runs/2025-11-24")
    print(to_text(comparison))

`python -m infvit.compare RUN_DIRS...` does the same from the command line.
"""

from infvit.compare.latex import to_latex
from infvit.compare.page import to_html
from infvit.compare.pairing import Paired
from infvit.compare.pictures import write_pictures
from infvit.compare.render import to_csv, to_markdown, to_text
from infvit.compare.table import Comparison, Row, Unreadable, find_results
from infvit.compare.write import FILES, write_comparison
from infvit.run.result import SCHEMA, Result, UnreadableResultError
from infvit.tables.interval import Estimate

__all__ = [
    "FILES",
    "SCHEMA",
    "Comparison",
    "Estimate",
    "Paired",
    "Result",
    "Row",
    "Unreadable",
    "UnreadableResultError",
    "find_results",
    "to_csv",
    "to_html",
    "to_latex",
    "to_markdown",
    "to_text",
    "write_comparison",
    "write_pictures",
]
