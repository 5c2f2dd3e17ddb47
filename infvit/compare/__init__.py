"""Compares runs: one table of many `result.json`, with means and intervals over seeds, and what does not compare.

    comparison = write_comparison(["runs/2025-11-24"], "runs/2025-11-24")
    print(to_text(comparison))

`python -m infvit.compare RUN_DIRS...` does the same from the command line.
"""

from infvit.compare.columns import records
from infvit.compare.comparison import Comparison, Row
from infvit.compare.page import to_html
from infvit.compare.write import FILES, to_latex, to_markdown, to_text, write_comparison
from infvit.tables.interval import Estimate

__all__ = [
    "FILES",
    "Comparison",
    "Estimate",
    "Row",
    "records",
    "to_html",
    "to_latex",
    "to_markdown",
    "to_text",
    "write_comparison",
]
