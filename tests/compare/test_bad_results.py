"""A result that is damaged, of another schema or still being written is named as such in every output."""

from __future__ import annotations

import csv
import html
import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest

from infvit.compare import Comparison, to_csv, to_html, to_latex, to_markdown, to_text, write_comparison
from tests.compare.conftest import MakeResult, write_results


def damage(path: Path) -> str:
    path.write_text(path.read_text()[:200])
    return "is not JSON at line"


def older(path: Path) -> str:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema": 0}))
    return "has schema 0, expected 1"


def still_running(path: Path) -> str:
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"status": "running", "seconds": 125.0, "metrics": {}}))
    return "seed 1 running: last written 2025-11-24 02:03 UTC"


@pytest.fixture(params=[damage, older, still_running])
def bad(request: pytest.FixtureRequest, make_result: MakeResult, tmp_path: Path) -> tuple[Path, str]:
    """A sweep of two runs whose second result is bad; with what must be said of it."""
    make_bad: Callable[[Path], str] = request.param
    folders = write_results(tmp_path / "sweep", [make_result("vit", seed) for seed in (0, 1)])
    return tmp_path / "sweep", make_bad(folders[1] / "result.json")


def test_it_is_named_in_every_output(bad: tuple[Path, str]) -> None:
    sweep, words = bad
    comparison = Comparison.from_dirs([sweep])
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert rows[0]["seeds"] == "0"
    assert words in rows[-1]["problem"] or rows[0]["running"] == "1"
    for write in (to_text, to_markdown, to_latex, to_html):
        text = html.unescape(write(comparison)).replace("\\allowbreak{}", "").replace("\\", "")
        plain = "".join(text.split())  # however its lines are broken
        assert "".join(words.split()) in plain, write.__name__
        assert "1_seed=1" in plain, write.__name__


def test_a_table_without_any_readable_result_still_says_so(tmp_path: Path, make_result: MakeResult) -> None:
    (folder,) = write_results(tmp_path / "sweep", [make_result()])
    (folder / "result.json").write_text("")
    comparison = write_comparison([tmp_path / "sweep"], tmp_path / "out")
    assert not comparison.rows
    for ending in ("html", "md", "csv", "tex"):
        assert "is empty: expected JSON" in (tmp_path / "out" / f"comparison.{ending}").read_text()
