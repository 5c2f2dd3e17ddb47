"""From the `result.json` of many runs to one table: means and intervals over seeds, and what does not compare.

    comparison = write_comparison(["runs/2025-11-24"], "runs/2025-11-24")
    print(to_text(comparison))

`python -m infvit.compare RUN_DIRS...` does the same from the command line.
"""

from infvit.compare.charts import write_pictures
from infvit.compare.interval import Estimate
from infvit.compare.page import to_html
from infvit.compare.render import to_csv, to_markdown, to_text
from infvit.compare.result import SCHEMA, Result, UnreadableResultError
from infvit.compare.table import Comparison, Row, Unreadable, find_results
from infvit.compare.write import write_comparison

__all__ = [
    "SCHEMA",
    "Comparison",
    "Estimate",
    "Result",
    "Row",
    "Unreadable",
    "UnreadableResultError",
    "find_results",
    "to_csv",
    "to_html",
    "to_markdown",
    "to_text",
    "write_comparison",
    "write_pictures",
]
