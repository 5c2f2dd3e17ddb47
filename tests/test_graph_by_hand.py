"""The page infvit/graph_by_hand: its blocks run in order and give its numbers and figures."""

import doctest
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

PAGE = Path(__file__).parent.parent / "infvit" / "graph_by_hand" / "README.md"
BLOCK = re.compile(r"^```(python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OF_THE_PAPER = "0.985"


def run(folder: Path) -> int:
    """Runs the page in `folder`, where it writes its figures; returns the number of compared outputs."""
    text, names, compared = PAGE.read_text(encoding="utf-8"), dict[str, Any](), 0
    with pytest.MonkeyPatch.context() as at:
        at.chdir(folder)
        for block in BLOCK.finditer(text):
            kind, code = block.groups()
            line = text[: block.start(2)].count("\n")
            if kind == "python":
                exec(compile("\n" * line + code, str(PAGE), "exec"), names)
                continue
            test = doctest.DocTestParser().get_doctest(code, names, PAGE.name, str(PAGE), line)
            runner = doctest.DebugRunner(verbose=False)
            runner.run(test, clear_globs=False)
            names = test.globs
            compared += sum(bool(example.want) for example in test.examples)
    return compared


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("by_hand")
    assert run(folder) > 10
    return folder


@pytest.mark.slow
def test_its_blocks_draw_its_figures(written):
    named = set(re.findall(r"!\[.*?\]\((.*?)\)", PAGE.read_text(encoding="utf-8")))
    assert named == {path.name for path in written.iterdir()} == {path.name for path in PAGE.parent.glob("*.png")}
    for name in named:
        drawn, kept = (
            np.asarray(Image.open(at / name).convert("L").resize((96, 48)), float) for at in (written, PAGE.parent)
        )
        assert np.abs(drawn - kept).mean() < 3, f"{name}: python -m tests.test_graph_by_hand {PAGE.parent}"


def test_numbers_in_its_text_are_among_the_computed_ones():
    text = PAGE.read_text(encoding="utf-8")
    computed = " ".join(code for _, code in BLOCK.findall(text)) + OF_THE_PAPER
    stated = re.findall(r"\b\d+\.\d+\b", re.sub(r"arXiv:[\d.]+", "", BLOCK.sub("", text)))
    assert len(stated) >= 4
    assert [number for number in stated if number not in computed] == []


if __name__ == "__main__":
    run(Path(sys.argv[1]))
