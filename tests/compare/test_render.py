"""The table as text, Markdown and CSV, and the command that prints it."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path

import pytest

from infvit.compare import Comparison, Unreadable, to_csv, to_markdown, to_text
from infvit.compare.__main__ import main
from infvit.compare.render import amount, duration, notes, percent, plain, rate
from infvit.compare.table import Estimate
from tests.compare.conftest import MakeResult, MakeSweep

LONG = "a_model_with_a_name_that_is_much_longer_than_any_terminal_has_room_for_in_one_column_of_a_table"


@pytest.fixture
def comparison(make_result: MakeResult) -> Comparison:
    results = [make_result(model, seed, 0.9 + seed / 100) for model in ("vit", "infvit") for seed in (0, 1, 2)]
    results.append(
        make_result("infvit", 3, None, status="failed", error="RuntimeError: CUDA out of memory " + "x" * 90)
    )
    results.append(make_result(LONG, 0, 0.99, depth=24, recipe="deit", recipe_hash="ab12cd34"))
    return Comparison.from_results(results, [Unreadable("runs/" + "deep/" * 30 + "result.json", "is empty")])


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_longer_than_the_terminal(comparison: Comparison, width: int) -> None:
    lines = to_text(comparison, width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("top-1 %" in line for line in lines)


def test_the_text_says_all_that_matters(comparison: Comparison) -> None:
    text = " ".join(to_text(comparison).split())
    assert "91.00 ± 2.48" in text
    assert "99.00 ± –" in text
    assert "depth 24, not 4" in text
    assert "recipe deit#ab12cd34, not digits#34cd90ab" in text
    assert "1 failed" in text
    assert "infvit seed 3 failed: RuntimeError: CUDA out of memory" in text
    assert "is empty" in text
    assert "Student's t" in text


def test_a_name_cannot_move_the_cursor(make_result: MakeResult) -> None:
    comparison = Comparison.from_results([make_result("vit\x1b[2J\r\n", error="bell\x07", status="failed")])
    for text in (to_text(comparison), to_markdown(comparison)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)


def test_markdown_keeps_its_columns_and_shows_names_as_they_are(make_result: MakeResult) -> None:
    comparison = Comparison.from_results(
        [make_result("<script>alert(1)</script>|b`*")], [Unreadable("a|b", "is\nempty")]
    )
    text = to_markdown(comparison)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 4
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<script>" not in text
    assert "a\\|b" in table[-1]
    assert "unreadable: is; empty" in table[-1]


def test_markdown_names_failures_and_what_was_compared(comparison: Comparison) -> None:
    text = to_markdown(comparison)
    assert "- infvit seed 3 failed: RuntimeError: CUDA out of memory" in text
    assert "- Data: digits (fingerprint 9f3ac2d417b0, 8 px)" in text
    assert "- Command: python train.py -m" in text
    assert "≠ depth 24, not 4; recipe deit#ab12cd34, not digits#34cd90ab" in text


def test_csv_gives_every_row_back_in_raw_numbers(comparison: Comparison) -> None:
    rows = list(csv.DictReader(io.StringIO(to_csv(comparison))))
    assert len(rows) == len(comparison.rows) + 1
    for line, row in zip(rows, comparison.rows, strict=False):
        assert line["model"] == row.config.model
        assert float(line["test_top1"]) == row.top1.mean
        half_width = line["test_top1_ci95_half_width"]
        assert (float(half_width) if half_width else None) == row.top1.half_width
        assert int(line["parameters"]) == row.known("parameters")
        assert int(line["failed"]) == row.count("failed")
        assert line["comparable"] == str(row.comparable)
        assert line["recipe_hash"] == row.config.recipe_hash
    assert rows[-1]["problem"] == "is empty"
    assert rows[-1]["test_top1"] == ""


def test_nothing_at_all_still_renders() -> None:
    nothing = Comparison.from_results([])
    assert to_csv(nothing) == ""
    assert "top-1" in to_text(nothing)
    assert "top-1" in to_markdown(nothing)


def test_repeats_missing_numbers_and_other_hardware_are_noted(make_result: MakeResult) -> None:
    results = [make_result(seed=0), make_result(seed=0, started="2030", run_dir="b"), make_result(seed=1, top1=None)]
    comparison = Comparison.from_results([*results, make_result("infvit", hardware={"gpu": "H100"})])
    assert notes(comparison) == [
        "vit seed 0: finished twice; only the latest is counted, not runs/digits/vit-0",
        "vit: of 2 finished seeds, not all have top-1, top-5, loss",
        "images/s were measured with different hardware: they do not compare",
    ]


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (None, "–"),
        (0, "0"),
        (999, "999"),
        (1049, "1.05k"),
        (999_600, "1.00M"),
        (53_451_752, "53.5M"),
        (4.2e12, "4.20T"),
    ],
)
def test_amounts_have_three_digits(number: float | None, text: str) -> None:
    assert amount(number) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "–"), (3.24, "3.2 s"), (59.4, "59 s"), (59.7, "1 min 00 s"), (192, "3 min 12 s"), (7499, "2 h 05 min")],
)
def test_durations_are_in_their_largest_units(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_with_intervals() -> None:
    assert percent(Estimate(3, 0.9342, 0.0126)) == "93.42 ± 1.26"
    assert percent(Estimate()) == "–"
    assert plain(Estimate(1, 0.25)) == "0.250 ± –"
    assert rate(Estimate(2, 1834.4, 12.0)) == "1,834 ± 12"
    assert rate(Estimate(2, 17.19, 0.5)) == "17.2 ± 0.5"


def test_the_command_prints_the_table_and_says_where_the_files_lie(
    make_result: MakeResult, make_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = make_sweep([make_result(seed=0, top1=0.875)])
    assert main([str(folders[0]), "--out", str(tmp_path / "out")]) == 0
    out = capsys.readouterr().out
    assert "87.50 ± –" in out
    for name in ("comparison.html", "comparison.md", "comparison.csv", "curves.png", "accuracy_vs_flops.png"):
        assert str(tmp_path / "out" / name) in out
        assert (tmp_path / "out" / name).stat().st_size


def test_the_command_refuses_what_is_not_there_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    for path, reason in ((tmp_path / "nowhere", "no such folder"), (tmp_path, "no result.json in")):
        assert main([str(path), "--out", str(tmp_path)]) == 2
        captured = capsys.readouterr()
        assert reason in captured.err
        assert captured.err.count("\n") == 1
        assert not captured.out


def test_a_folder_that_cannot_be_written_is_told_in_one_line(
    make_result: MakeResult, make_sweep: MakeSweep, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = make_sweep([make_result(status="failed", top1=None)])
    (tmp_path / "file").write_text("")
    assert main([str(folders[0]), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written there" in capsys.readouterr().err
