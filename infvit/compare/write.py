"""The files that a comparison leaves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from infvit.compare.latex import to_latex
from infvit.compare.page import to_html
from infvit.compare.pictures import PICTURES, write_pictures
from infvit.compare.render import to_csv, to_markdown
from infvit.compare.table import Comparison
from infvit.errors import UsageError
from infvit.run.files import atomic_write

FILES = (*(f"comparison.{ending}" for ending in ("html", "md", "csv", "tex")), *PICTURES)


def write_comparison(run_dirs: Iterable[str | Path], out_dir: str | Path, baseline: str | None = None) -> Comparison:
    """Compare the runs in the folders and write `FILES` into `out_dir`; without a finished run there are no pictures.

    `baseline` is as in `Comparison.from_results`.
    """
    comparison = Comparison.from_dirs(run_dirs, baseline)
    out = Path(out_dir)
    texts = {"html": to_html(comparison, out), "md": to_markdown(comparison)}
    texts |= {"csv": to_csv(comparison), "tex": to_latex(comparison)}
    try:
        out.mkdir(parents=True, exist_ok=True)
        for ending, text in texts.items():
            atomic_write(out / f"comparison.{ending}", text)
        write_pictures(comparison, out)
    except OSError as error:
        raise UsageError(f"{out}: the comparison cannot be written there: {error.strerror or error}") from error
    return comparison
