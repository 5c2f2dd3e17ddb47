"""The page: self-contained, escaped, and alive in a real browser."""

import base64
import csv
import dataclasses
import html
import io
import json
import re

import pytest

from infvit.compare import FILES, Comparison, to_html, write_comparison
from infvit.compare.charts import MOST_POINTS, PICTURES, charts
from infvit.run.result import Result
from infvit.tables.theme import specification
from tests.compare.conftest import EVIL, picture


def test_every_name_is_escaped(make_result):
    fields = {field.name: EVIL for field in dataclasses.fields(Result) if field.type is str}
    result = make_result(**fields, hardware={EVIL: EVIL}, versions={"x": EVIL})
    page = to_html(Comparison.from_results([result, make_result(status="failed", error=EVIL)]))
    assert EVIL not in page
    assert "broken into" in page


def test_links_to_run_folders_start_from_the_page(make_result, tmp_path):
    folders = [tmp_path / "sweep" / "0 model=vit", tmp_path / "elsewhere" / "1#?"]
    results = [make_result(seed=i, run_dir=str(folder)) for i, folder in enumerate(folders)]
    results.append(make_result(seed=2, run_dir="javascript:alert(1)"))
    found = links(to_html(Comparison.from_results(results), tmp_path / "sweep"))
    assert found[:2] == ["./0%20model%3Dvit/", "../elsewhere/1%23%3F/"]
    assert not any(link.startswith("javascript:") for link in found)


def links(page: str) -> list[str]:
    return [html.unescape(link) for link in re.findall(r'<a [^>]*href="([^"]*)"', page)]


def test_the_page_needs_no_network(page_file):
    page = page_file.read_text()
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:|\./|\.\./)[^"]*"|url\(|@import', markup)
    assert "default-src 'none'" in page


def test_all_files_are_written_and_pictures_are_pictures(page_file):
    assert {path.name for path in page_file.parent.iterdir() if path.is_file()} == set(FILES)
    for name in PICTURES:
        assert (page_file.parent / name).read_bytes().startswith(b"\x89PNG")


def test_only_failed_runs_make_a_page_without_charts_and_no_stale_pictures(make_result, make_sweep, tmp_path):
    failed = [make_result(seed=s, top1=None, status="failed", error="no such GPU", parameters=None) for s in (0, 1)]
    (tmp_path / "curves.png").write_bytes(b"from an earlier comparison")
    comparison = write_comparison(make_sweep(failed), tmp_path)
    assert comparison.rows[0].troubles == "2 failed"
    assert not list(tmp_path.glob("*.png"))
    page = (tmp_path / "comparison.html").read_text()
    assert "no such GPU" in page
    assert "Vega" not in page
    assert 'class="plot"' not in page


def test_a_curve_is_the_mean_of_its_seeds_between_the_lowest_and_the_highest(make_result):
    ups = [make_result(seed=s, curves=[{"epoch": 0, "val/top1": x}]) for s, x in enumerate((0.2, 0.3, 0.7))]
    failed = make_result(seed=9, curves=[{"epoch": 0, "val/top1": 0.99}], status="failed")
    (point,) = points(Comparison.from_results([*ups, failed]), "val_top1")
    assert [float(point[name]) for name in ("mean", "low", "high", "seeds")] == [0.4, 0.2, 0.7, 3]


def points(comparison: Comparison, chart: str) -> list[dict[str, str]]:
    """What a chart of the comparison draws."""
    content = specification(charts(comparison)[chart])
    (text,) = [data for data in content["datasets"].values() if isinstance(data, str)]
    return list(csv.DictReader(io.StringIO(text)))


@pytest.mark.slow
def test_two_hundred_long_runs_stay_under_five_megabytes_with_a_short_title(make_result):
    long = {"epochs": 300, "attention": "mine.DifferentialAttention"}
    results = [make_result(f"model_{i}", seed, 0.5 + i / 200, **long) for i in range(40) for seed in range(5)]
    comparison = Comparison.from_results(results)
    drawn = points(comparison, "val_top1")
    assert len(drawn) <= MOST_POINTS
    assert {point["epoch"] for point in drawn} >= {"299"}
    page = to_html(comparison)
    assert len(page.encode()) < 5_000_000
    assert "<h1>40 models on digits</h1>" in page
    assert "mine.<wbr>Differential<wbr>Attention" in page


def test_a_row_has_the_attention_picture_of_its_first_seed(make_result, make_sweep):
    runs = [make_result(model, seed) for model in ("vit", "infvit", "none") for seed in (1, 0)]
    folders = make_sweep(runs)
    for folder, run in zip(folders, runs, strict=True):
        if run.model != "none":
            picture(folder, 100 * run.seed)
    page = to_html(Comparison.from_dirs(folders), folders[0].parent)
    shown = re.findall(r'<img src="data:image/png;base64,([^"]*)" alt="Attention of (\w+), seed (\d)"', page)
    assert sorted((name, seed) for _, name, seed in shown) == [("infvit", "0"), ("vit", "0")]
    assert {base64.b64decode(content) for content, *_ in shown} == {(folders[1] / "attention.png").read_bytes()}
    assert {"./1_seed%3D0/attention.png", "./3_seed%3D0/attention.png"} <= set(links(page))
    assert "Rows whose runs made no picture: none." in page
    assert "What the models look at" not in to_html(Comparison.from_results(runs))


@pytest.mark.slow
def test_pictures_of_two_hundred_rows_leave_the_page_below_five_megabytes(make_result, make_sweep):
    folders = make_sweep([make_result(f"model_{i}", 0, i / 200, epochs=30) for i in range(200)])
    for folder in folders:
        picture(folder, 40_000)
    page = to_html(Comparison.from_dirs(folders), folders[0].parent)
    assert len(page.encode()) < 5_000_000
    assert page.count("/attention.png") == 200
    assert 30 < page.count("<img ") < 60


def test_points_and_differences_are_the_tables_numbers(make_result):
    tops = {"vit": (0.5, 0.7), "infvit": (0.6, 0.9)}
    comparison = Comparison.from_results(make_result(m, s, x) for m, xs in tops.items() for s, x in enumerate(xs))
    drawn = {point["row"]: point for point in points(comparison, "accuracy")}
    assert float(drawn["vit"]["mean"]) == 0.6
    half_width = 12.706204736 * 0.1  # t(1) * 0.1 * sqrt(2) / sqrt(2)
    assert float(drawn["vit"]["low"]) == pytest.approx(0.6 - half_width, rel=1e-4)
    (difference,) = points(comparison, "paired")
    assert (difference["row"], float(difference["mean"])) == ("infvit", 15.0)
    assert float(difference["high"]) == pytest.approx(15 + 12.706204736 * 5, rel=1e-4)


def test_a_row_far_below_does_not_press_the_others_together_and_stands_at_the_edge(make_result):
    tops = {"none": 0.1} | {f"model_{i}": 0.95 + i / 1000 for i in range(14)}
    comparison = Comparison.from_results(make_result(m, top1=x, epochs=60) for m, x in tops.items())
    drawn = {point["row"]: point for point in points(comparison, "accuracy")}
    assert {name: point["beyond"] for name, point in drawn.items()} == dict.fromkeys(tops, "0") | {"none": "-1"}
    low = float(drawn["none"]["at"])
    assert 0.94 < low < 0.95
    assert float(drawn["none"]["mean"]) == 0.1
    text = json.dumps(specification(charts(comparison)["accuracy"]))
    assert f'"domain": [{low}, ' in text
    line = specification(charts(comparison)["val_top1"])["layer"][1]
    assert isinstance(line["encoding"]["y"]["scale"]["domain"], list)  # Vega-Lite ignores anything else
    assert line["encoding"]["y"]["scale"]["domain"][0] > 0.1


def test_a_title_names_few_rows_and_counts_many(make_result):
    titles = {
        "vit": [make_result("vit")],
        "3 configurations of vit on digits": [make_result(variant=f"model.attention.an_option={i}") for i in range(3)],
    }
    for title, results in titles.items():
        assert f"<h1>{title}</h1>" in to_html(Comparison.from_results(results))


def test_gamma_is_each_blocks_last_over_seeds_and_absent_where_nothing_has_one(make_result):
    runs = [
        make_result("infvit", s, curves=[{"epoch": 0, "gamma/0": 0.95}, {"epoch": 1, "gamma/0": g, "gamma/10": 0.5}])
        for s, g in enumerate((0.90, 0.94))
    ]
    drawn = points(Comparison.from_results([*runs, make_result("vit")]), "gamma")
    assert [(point["row"], point["block"], float(point["mean"])) for point in drawn] == [
        ("infvit", "0", 0.92),
        ("infvit", "10", 0.5),
    ]
    assert (float(drawn[0]["low"]), float(drawn[0]["high"])) == (0.90, 0.94)
    assert "gamma" not in charts(Comparison.from_results([make_result("vit")]))
