"""The page of the published claims: what it quotes, what it computes, and what runs put in the place of its tables."""

import json
from pathlib import Path

import pytest
import yaml

from infvit.claims import evidence
from infvit.claims.__main__ import main
from infvit.claims.arithmetic import ARITHMETIC
from infvit.claims.evidence import cell, filled
from infvit.claims.page import CLAIMS_FILE, VERDICTS, published_numbers
from infvit.compare.published import entries
from infvit.errors import UsageError
from tests.compare.conftest import IMAGENET, write_results
from tests.compare.conftest import make_result as make_result

PAGE = Path(evidence.__file__).with_name("README.md")
TABLE = """# A page
## First
| px | model | ms |
|---|---|---:|
| 224 | vit | 1.0 |
|  | infvit | 2.0 |

| px | model | GB |
|---|---|---:|
| 224 | vit | 3.0 |
### Second, of 5 seeds
words
| model | ms |
|---|---:|
| vit | 4.0 ± 1 |
"""


@pytest.fixture(scope="module")
def numbers():
    return yaml.safe_load(CLAIMS_FILE.read_text())["numbers"] | published_numbers()


@pytest.mark.slow
def test_the_page_in_the_repository_is_what_the_command_writes(tmp_path):
    """If a table that it quotes has changed: python -m infvit.claims."""
    assert main(["--out", str(tmp_path / "page.md")]) == 0
    assert (tmp_path / "page.md").read_text() == PAGE.read_text()


def test_every_published_number_is_on_the_page_with_a_verdict():
    text = PAGE.read_text()
    for entry in entries():
        for name, value in entry["numbers"].items():
            shown = f"{value / 1e6:.1f}M" if name == "parameters" else f"{100 * value:.1f}"
            assert f"| {shown} |" in text
    for row in (line for line in text.splitlines() if line.startswith("| ") and "verdict" not in line):
        assert row.rstrip(" |").split(" | ")[-1] in VERDICTS.values()


def test_what_arithmetic_says_follows_from_the_numbers(numbers):
    energy = ARITHMETIC["one_measurement"](numbers)
    assert "1000 / 58.16 = 17.19 and 1000 / 4.33 = 230.95" in energy
    assert "200 and 201 W" in energy
    assert "Outside 20 to 34: 16.2 and 19.9." in ARITHMETIC["above_softmax"](numbers)
    assert "Outside 16 to 34: none." in ARITHMETIC["above_softmax"](numbers | {"maps_above_softmax": [16, 34]})
    assert "0.3 points for 8 layers" in ARITHMETIC["depth"](numbers)
    assert f"{16 * 16385**2 * 4 / 1e9:.1f} GB" in ARITHMETIC["memory"](numbers)


def test_cells_are_found_by_section_row_and_column():
    assert cell(TABLE, "First", "224 & vit", "ms") == "1.0"
    assert cell(TABLE, "First", "224 & infvit", "ms") == "2.0"
    assert cell(TABLE, "First", "224 & vit", "GB") == "3.0"
    assert cell(TABLE, "Second", "vit", "ms") == "4.0 ± 1"
    assert [cell(TABLE, *place) for place in (("Third", "vit", "ms"), ("Second", "vit", "GB"))] == [None, None]


def test_a_cell_or_words_that_are_gone_are_one_line(monkeypatch, tmp_path):
    (tmp_path / "page.md").write_text(TABLE)
    monkeypatch.setattr(evidence, "ROOT", tmp_path)
    sources = {"it": {"file": "page.md"}, "gone": {"file": "none.md"}}
    assert filled("[[it: Second | vit | ms]] in [[it: of 5 seeds]]", sources) == "4.0 ± 1 in of 5 seeds"
    for text in ("[[it: Second | vit | GB]]", "[[it: of 6 seeds]]"):
        with pytest.raises(UsageError, match=r"page\.md has no .*: correct infvit/claims/claims\.yaml"):
            filled(text, sources)
    with pytest.raises(UsageError, match=r"none\.md is not here"):
        filled("[[gone: words]]", sources)


@pytest.mark.slow
def test_runs_take_the_place_of_the_tables_and_the_published_configuration_settles(make_result, tmp_path, capsys):
    results = [make_result("linear_infvit", s, 0.84 + s / 100, **IMAGENET) for s in (0, 1)]
    results += [make_result("vit", s, 0.5, data="mnist5k") for s in (0, 1)]
    write_results(tmp_path, results)
    times = {f"seconds{end}": x for end, x in (("", 0.004), ("_low", 0.003), ("_high", 0.005))}
    row = {"model": "linear_infvit", "resolution": 1024, "pass": "forward", **times}
    row |= dict.fromkeys(("images_per_second", "times_as_fast_as_vit", "joules_per_image"))
    file = tmp_path / "efficiency.json"
    file.write_text(json.dumps({"hardware": {"gpu": "A100"}, "rows": [row]}))
    assert main([str(tmp_path), "--out", str(tmp_path / "page.md")]) == 0
    lines = {line.split(" | ")[0]: line for line in (tmp_path / "page.md").read_text().splitlines()}
    linear = lines["| Linear InfViT: ImageNet-1K top-1, %"]
    assert "imagenet, 300 epochs, 2 seeds: 84.50 ± 6.35" in linear
    assert linear.endswith("| settled here: as measured |")
    softmax = lines["| softmax ViT, 4 layers: ImageNet-1K top-1, %"]
    assert "mnist5k, 12 epochs, 2 seeds: 50.00 ± 0.00 (vit; cpu AMD EPYC" in softmax
    assert softmax.endswith("| open |")
    assert "| 4.33 | 4.00 (3.00 – 5.00) on gpu A100 |" in lines["| Linear InfViT: latency, ms"]
    assert "0.687" in lines["| Linear InfViT: images/s"]
    capsys.readouterr()
    file.write_text("{}")
    for runs in (tmp_path, tmp_path / "nowhere"):
        assert main([str(runs), "--out", str(tmp_path / "page.md")]) == 2
        assert capsys.readouterr().err.count("\n") == 1
