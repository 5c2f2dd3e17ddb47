"""What text, Markdown, LaTeX, HTML and CSV say of a comparison, and the command that prints it."""

import csv
import io
import json
import re
import shutil
import subprocess

import pytest

from infvit.compare import Comparison, records, to_latex, to_markdown, to_text
from infvit.compare.__main__ import main
from infvit.compare.notes import provenance, remarks
from infvit.run.result import UnreadableResultError
from infvit.tables.table import to_csv
from tests.compare.conftest import MakeResult

LONG = "a_model_with_a_name_that_is_much_longer_than_any_terminal_has_room_for_in_one_column_of_a_table"
EVIL = r"a_b\input{/etc/passwd}$x^2$ 50% #1 & ~<y>|z \end{tabular} ?`é中--"


def read_csv(comparison: Comparison) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(to_csv(records(comparison)))))


@pytest.fixture
def comparison(make_result: MakeResult) -> Comparison:
    results = [make_result(model, seed, 0.9 + seed / 100) for model in ("vit", "infvit") for seed in (0, 1, 2)]
    results.append(
        make_result("infvit", 3, None, status="failed", error="RuntimeError: CUDA out of memory " + "x" * 90)
    )
    results.append(make_result("vit", 4, None, status="running"))
    results.append(make_result(LONG, 0, 0.99, depth=24, recipe="deit", recipe_hash="ab12cd34"))
    return Comparison.from_results(results, [UnreadableResultError("runs/" + "deep/" * 30 + "result.json", "is empty")])


def test_every_format_has_numbers_differences_and_failures(comparison, printed):
    text = printed(comparison)
    for words in (
        "91.00 ± 2.48",
        "99.00 ± –",
        "baseline",
        "depth 24, not 4",
        "recipe deit#ab12cd34, not digits#34cd90ab",
        "1 failed",
        "infvit seed 3 failed: RuntimeError: CUDA out of memory",
        "vit seed 4 running: last written 2025-11-24 02:04 UTC",
        "unreadable: runs/deep/",
        "is empty",
        "Student's t",
    ):
        assert words in text


def test_names_leave_out_what_all_rows_share_and_every_format_has_it_once(make_result, printed):
    mixup = "recipe.mixup={_target_: timm.data.Mixup, mixup_alpha: 0.8}"
    variants = ("gamma=fixed", "gamma=shared")
    runs = [make_result(variant=f"{gamma} {mixup} recipe.epochs=300", top1=0.9) for gamma in variants]
    runs.append(make_result("infvit", variant=f"{mixup} recipe.epochs=300 ~recipe.ema", top1=0.8))
    comparison = Comparison.from_results(runs)
    assert [row.name for row in comparison.rows] == ["vit gamma=fixed", "vit gamma=shared", "infvit ~recipe.ema"]
    assert comparison.shared == (mixup, "recipe.epochs=300")
    text = printed(comparison)
    assert text.count("mixup_alpha") == text.count("recipe.epochs=300") == 1
    assert re.search(r"Every row(: |</dt><dd>)recipe.mixup=", text)
    assert [line["variant"] for line in records(comparison)] == [row.config.variant for row in comparison.rows]

    alone = Comparison.from_results([make_result(variant="gamma=fixed", seed=seed) for seed in (0, 1)])
    assert [row.name for row in alone.rows] == ["vit gamma=fixed"]
    assert "Every row" not in printed(alone)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_no_line_is_longer_than_the_terminal(comparison, width):
    lines = to_text(comparison, width).splitlines()
    assert max(map(len, lines)) <= width
    assert any("top-1 %" in line for line in lines)


def test_markdown_keeps_its_columns_and_names_as_they_are_without_control_characters(make_result):
    evil = make_result("<script>alert(1)</script>|b`*\x1b[2J\r\n", error="bell\x07", status="failed")
    comparison = Comparison.from_results([evil], [UnreadableResultError("a|b", "is\nempty")])
    text = to_markdown(comparison)
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert len(table) == 3
    assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table}) == 1
    assert "<script>" not in text
    assert "- unreadable: a\\|b: is; empty" in text
    for output in (text, to_text(comparison)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", output)


def test_what_was_compared_has_no_empty_facts_and_the_most_common_first(make_result):
    sweep = "python train.py -m model=vit,infvit seed=0,1"
    jobs = [make_result(m, s, command="of a job", sweep_command=sweep) for m in ("vit", "infvit") for s in (0, 1)]
    single = make_result("d", 7, command="python train.py", recipe="other", hardware={"cpu": "x", "gpus": []})
    comparison = Comparison.from_results([single, *jobs])
    facts = dict(provenance(comparison))
    assert facts["Command"].splitlines() == [sweep, "python train.py"]
    assert facts["Hardware"].splitlines()[1] == "cpu x"
    recipes = [f"{name} (hash 34cd90ab12ef5678, 12 epochs)" for name in ("digits", "other")]
    assert facts["Recipe"].splitlines() == recipes
    text = to_markdown(comparison)
    assert "- Data: digits (fingerprint 9f3ac2d417b0, 8 px)" in text
    assert f"- Command: {sweep}; python train.py" in text


def test_csv_gives_every_row_back_in_raw_numbers(comparison):
    rows = read_csv(comparison)
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


def test_latex_has_its_columns_and_one_mark_for_rows_that_differ_alike(make_result):
    results = [make_result(EVIL, 0, 0.5, depth=24), make_result("other", 0, 0.4, depth=24)]
    comparison = Comparison.from_results(
        [*(make_result(name) for name in ("vit", "infvit", "linear_infvit")), *results]
    )
    text = to_latex(comparison)
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    (spec,) = re.findall(r"\\begin\{tabular\}\{(l?r*)\}", text)
    assert [len(re.findall(r"(?<!\\)&", line)) + 1 for line in body if line] == [len(spec)] * len(comparison.rows)
    assert all(line.endswith(r"\\") for line in body if line)
    assert text.count(r"\,$^{1}$") == 2
    assert text.count("not comparable: depth 24, not 4") == 1


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex: apt-get install texlive-latex-recommended")
def test_latex_compiles(make_result, tmp_path):
    results = [make_result(m, s, 0.9 + s / 100) for m in ("vit", "infvit") for s in (0, 1, 2)]
    results += [make_result(EVIL, 0, 0.5, depth=24, run_dir=EVIL), make_result("vit", 3, status="failed", error=EVIL)]
    page = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{comparison}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    (tmp_path / "comparison.tex").write_text(to_latex(Comparison.from_results(results)), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert "Overfull \\hbox" not in ran.stdout


def test_nothing_at_all_still_prints(printed):
    nothing = Comparison.from_results([])
    assert records(nothing) == []
    assert "top-1" in printed(nothing).lower()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (None, "is not JSON: Unterminated string"),
        ({"schema": 0}, "has schema 0, expected 1"),
        ({"status": "running", "seconds": 125.0, "metrics": {}}, "seed 1 running: last written 2025-11-24 02:03 UTC"),
    ],
    ids=["damaged", "of another schema", "running"],
)
def test_a_bad_result_is_named_in_every_format(change, words, make_result, make_sweep, printed):
    folders = make_sweep([make_result("vit", seed) for seed in (0, 1)])
    path = folders[1] / "result.json"
    text = path.read_text()
    path.write_text(json.dumps(json.loads(text) | change) if change else text[:200])
    comparison = Comparison.from_dirs([folders[0].parent])
    assert words in printed(comparison)
    assert "1_seed=1" in printed(comparison)
    rows = read_csv(comparison)
    assert rows[0]["seeds"] == "0"
    assert words in rows[-1]["problem"] or rows[0]["running"] == "1"


def test_repeats_missing_numbers_and_other_hardware_are_noted(make_result):
    results = [make_result(seed=0), make_result(seed=0, started="2030", run_dir="b"), make_result(seed=1, top1=None)]
    comparison = Comparison.from_results([*results, make_result("infvit", hardware={"gpu": "H100"})])
    assert remarks(comparison) == [
        "vit seed 0: finished twice; only the latest is counted, not runs/digits/vit-0",
        "vit: of 2 finished seeds, not all have top-1, top-5, test loss",
        "images/s were measured with different hardware: they do not compare",
    ]


@pytest.mark.slow
def test_the_command_prints_the_table_and_the_files(make_result, make_sweep, tmp_path, capsys):
    folders = make_sweep([make_result(model, s, 0.875) for model in ("vit", "infvit") for s in (0, 1)])
    options = ["--margin", "0.5", "--curve-epochs", "3", "4"]
    assert main([str(folders[0].parent), "--out", str(tmp_path / "out"), *options]) == 0
    out = capsys.readouterr().out
    assert "87.50 ± 0.00" in out
    heading = (tmp_path / "out" / "comparison.md").read_text().split("| model |")[1].splitlines()[0]
    assert all(words in heading for words in (r"\|Δ\| ≥ 0.5, p", "after 3 ep. %", "after 4 ep. %"))
    for name in ("comparison.html", "comparison.md", "comparison.csv", "curves.png", "accuracy_vs_flops.png"):
        assert str(tmp_path / "out" / name) in out
        assert (tmp_path / "out" / name).stat().st_size


def test_the_command_refuses_bad_folders_in_one_line(make_result, make_sweep, tmp_path, capsys):
    (run,) = make_sweep([make_result(status="failed", top1=None)])
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    for path, out, reason in (
        (tmp_path / "nowhere", tmp_path, "no such folder"),
        (tmp_path / "empty", tmp_path, "no result.json in"),
        (run, tmp_path / "file", "cannot be written there"),
    ):
        assert main([str(path), "--out", str(out)]) == 2
        captured = capsys.readouterr()
        assert reason in captured.err
        assert captured.err.count("\n") == 1
        assert not captured.out
