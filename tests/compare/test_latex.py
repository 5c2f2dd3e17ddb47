"""The LaTeX table: every name as it is, and a PDF where pdflatex exists."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from infvit.compare import Comparison, Unreadable, to_latex
from infvit.compare.latex import escaped
from tests.compare.conftest import MakeResult

EVIL = r"a_b\input{/etc/passwd}$x^2$ 50% #1 & ~<y>|z \end{tabular} ?`é中--"


@pytest.fixture
def comparison(make_result: MakeResult) -> Comparison:
    results = [make_result(m, s, 0.9 + s / 100) for m in ("vit", "infvit") for s in (0, 1, 2)]
    results += [make_result(EVIL, 0, 0.5, depth=24, run_dir=EVIL), make_result("vit", 3, status="failed", error=EVIL)]
    results += [make_result("other", 0, 0.4, depth=24), make_result("vit", 4, status="running", run_dir="runs/a_b")]
    return Comparison.from_results(results, [Unreadable("runs/x_y/result.json", "is empty")])


def test_every_special_character_is_escaped() -> None:
    assert escaped("\\{}$&#%_^~") == (r"\textbackslash{}\{\}\$\&\#\%\_\textasciicircum{}\textasciitilde{}")
    assert escaped("é中\n\t±−–") == r"e?  $\pm$$-$\textendash{}"
    assert "--" not in escaped("a---b")


def test_the_table_has_its_rules_columns_marks_and_notes(comparison: Comparison) -> None:
    text = to_latex(comparison)
    body = text[text.index(r"\midrule") : text.index(r"\bottomrule")].splitlines()[1:]
    (spec,) = re.findall(r"\\begin\{tabular\}\{(l?r*)\}", text)
    assert [len(re.findall(r"(?<!\\)&", line)) + 1 for line in body if line] == [len(spec)] * len(comparison.rows)
    assert all(line.endswith(r"\\") for line in body if line)
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert r"91.00 $\pm$ 2.48" in text
    assert "baseline" in text
    # Two rows differ in the same way: one mark, one note.
    assert text.count(r"\,$^{a}$") == 2
    assert text.count("not comparable: depth 24, not 4") == 1
    assert "unreadable: runs/" in text
    assert "vit seed 3 failed" in text
    assert "vit seed 4 running: last written 2025-11-24 02:04 UTC" in text
    assert "1 failed, 1 running" in text


def test_no_readable_run_is_still_a_table() -> None:
    assert "no readable run" in to_latex(Comparison.from_results([], [Unreadable("a", "is empty")]))


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="no pdflatex: apt-get install texlive-latex-recommended")
def test_it_compiles_and_prints_the_names(comparison: Comparison, tmp_path: Path) -> None:
    page = r"\documentclass{article}\usepackage{booktabs,graphicx}\begin{document}\input{comparison}\end{document}"
    (tmp_path / "page.tex").write_text(page)
    (tmp_path / "comparison.tex").write_text(to_latex(comparison), encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "-no-shell-escape", "page.tex"]
    ran = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
    assert ran.returncode == 0, ran.stdout[-2000:]
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert "Overfull \\hbox" not in ran.stdout
