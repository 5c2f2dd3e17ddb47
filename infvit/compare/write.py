"""The files that a comparison leaves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from infvit.compare.charts import write_pictures
from infvit.compare.page import to_html
from infvit.compare.render import to_csv, to_markdown
from infvit.compare.table import Comparison
from infvit.errors import UsageError


def write_comparison(run_dirs: Iterable[str | Path], out_dir: str | Path) -> Comparison:
    """Compare the runs in the folders and write `comparison.md`, `.csv`, `.html` and the pictures into `out_dir`.

    The pictures are `curves.png` and `accuracy_vs_flops.png`; without a finished run there are none.
    """
    comparison = Comparison.from_dirs(run_dirs)
    out = Path(out_dir)
    texts = {"md": to_markdown(comparison), "csv": to_csv(comparison), "html": to_html(comparison, out)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            (out / f"comparison.{ending}").write_text(text, encoding="utf-8")
        write_pictures(comparison, out)
    except OSError as error:
        raise UsageError(f"{out}: the comparison cannot be written there: {error.strerror or error}") from error
    return comparison
