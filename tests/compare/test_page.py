"""The page: self-contained, escaped, and alive in a real browser."""

from __future__ import annotations

import csv
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest

from infvit.compare import Comparison, Result, to_html, write_comparison
from infvit.compare.charts import MOST_POINTS, charts, spec
from tests.compare.conftest import MakeResult, MakeSweep

EVIL = "<script>document.title='broken into'</script>"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def some_results(make_result: MakeResult) -> list[Result]:
    accuracies = {"vit": 0.96, "infvit": 0.97, "linear_infvit": 0.95}
    results = [make_result(model, s, top1 + s / 100) for model, top1 in accuracies.items() for s in (0, 1)]
    results.append(make_result("vit", 2, None, status="failed", error=f"ValueError: {EVIL}"))
    results.append(make_result(EVIL, 0, 0.5, depth=24))
    return results


def test_every_name_is_escaped(make_result: MakeResult) -> None:
    fields = (
        "attention",
        "variant",
        "recipe",
        "recipe_hash",
        "data",
        "data_fingerprint",
        "command",
        "error",
        "run_dir",
    )
    result = make_result(EVIL, hardware={EVIL: EVIL}, versions={"x": EVIL}, started=EVIL, **dict.fromkeys(fields, EVIL))
    page = to_html(Comparison.from_results([result, make_result(status="failed", error=EVIL)]))
    assert EVIL not in page
    assert "broken into" in page


def test_a_run_folder_is_linked_from_where_the_page_lies(make_result: MakeResult, tmp_path: Path) -> None:
    folders = [tmp_path / "sweep" / "0 model=vit", tmp_path / "elsewhere" / "1#?"]
    results = [make_result(seed=i, run_dir=str(folder)) for i, folder in enumerate(folders)]
    results.append(make_result(seed=2, run_dir="javascript:alert(1)"))
    links = Links()
    links.feed(to_html(Comparison.from_results(results), tmp_path / "sweep"))
    assert links.found[:2] == ["./0%20model%3Dvit/", "../elsewhere/1%23%3F/"]
    assert not any(link.startswith("javascript:") for link in links.found)


class Links(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "a":
            self.found.append(dict(attrs)["href"] or "")


def test_the_page_asks_no_network(make_result: MakeResult) -> None:
    page = to_html(Comparison.from_results(some_results(make_result)))
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.findall(r'(?:src|href)="(?!data:|\./|\.\./)[^"]*"|url\(|@import', markup)
    assert "default-src 'none'" in page


def test_all_files_are_written_and_pictures_are_pictures(
    make_result: MakeResult, make_sweep: MakeSweep, tmp_path: Path
) -> None:
    comparison = write_comparison(make_sweep(some_results(make_result)), tmp_path / "out")
    assert len(comparison.rows) == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("comparison.md", "comparison.csv", "comparison.html", "curves.png", "accuracy_vs_flops.png")
    }
    for name in ("curves.png", "accuracy_vs_flops.png"):
        assert (tmp_path / "out" / name).read_bytes().startswith(b"\x89PNG")


def test_only_failed_runs_make_a_page_without_charts_and_no_stale_pictures(
    make_result: MakeResult, make_sweep: MakeSweep, tmp_path: Path
) -> None:
    failed = [make_result(seed=s, top1=None, status="failed", error="no such GPU", parameters=None) for s in (0, 1)]
    (tmp_path / "curves.png").write_bytes(b"from an earlier comparison")
    comparison = write_comparison(make_sweep(failed), tmp_path)
    assert comparison.rows[0].troubles == "2 failed"
    assert not list(tmp_path.glob("*.png"))
    page = (tmp_path / "comparison.html").read_text()
    assert "no such GPU" in page
    assert "vega" not in page


def test_a_curve_is_the_mean_of_its_seeds_between_the_lowest_and_the_highest(make_result: MakeResult) -> None:
    ups = [make_result(seed=s, curves=[{"epoch": 0, "val/top1": x}]) for s, x in enumerate((0.2, 0.3, 0.7))]
    failed = make_result(seed=9, curves=[{"epoch": 0, "val/top1": 0.99}], status="failed")
    (point,) = points(Comparison.from_results([*ups, failed]), "val_top1")
    assert [float(point[name]) for name in ("mean", "low", "high", "seeds")] == [0.4, 0.2, 0.7, 3]


def points(comparison: Comparison, chart: str) -> list[dict[str, str]]:
    """What a chart of the comparison draws."""
    content = spec(charts(comparison)[chart])
    return list(csv.DictReader(io.StringIO(content["datasets"][content["data"]["name"]])))


def test_many_long_runs_stay_under_three_megabytes(make_result: MakeResult) -> None:
    results = [make_result(f"model_{i}", seed, 0.5 + i / 200, epochs=300) for i in range(40) for seed in (0, 1)]
    comparison = Comparison.from_results(results)
    drawn = points(comparison, "val_top1")
    assert len(drawn) <= MOST_POINTS
    assert {point["epoch"] for point in drawn} >= {"299"}
    assert len(to_html(comparison).encode()) < 3_000_000


PROBE = """<script>
addEventListener("load", () => setTimeout(() => {
  const seen = {};
  const all = query => [...document.querySelectorAll(query)];
  const names = () => all("#results tbody:first-of-type tr").map(row => row.cells[0].dataset.value);
  const head = words => all("#results th").find(h => h.innerText.startsWith(words));
  const click = words => { head(words).querySelector("button").click(); return names(); };
  seen.start = names();
  seen.loss = click("Test loss");
  seen.loss_again = click("Test loss");
  seen.model = click("Model");
  seen.sort_marks = all("#results th[aria-sort]").map(h => h.ariaSort);
  const cost = document.querySelector("[data-cost=seconds]");
  cost.click();
  setTimeout(() => {
    const marks = (chart, mark) => all(`[data-chart=${chart}] .mark-${mark} :is(path, line)`);
    const drawn = chart => marks(chart, "line").filter(path => path.getAttribute("d").length > 40);
    seen.lines = ["val_top1", "train_loss"].map(chart => drawn(chart).length);
    seen.dashed = drawn("val_top1").filter(path => path.getAttribute("stroke-dasharray") === "5,4").length;
    seen.bars = marks("seconds", "rule").filter(line => line.getAttribute("stroke-width") === "2").length;
    seen.hollow = marks("seconds", "symbol").filter(path => path.getAttribute("fill-opacity") === "0.15").length;
    seen.shown = all(".plot:not([hidden])").map(plot => plot.dataset.chart);
    seen.requests = performance.getEntriesByType("resource").map(entry => entry.name);
    seen.scroll = document.documentElement.scrollWidth - innerWidth;
    seen.title = document.title;
    document.body.textContent = "SEEN" + JSON.stringify(seen) + "SEEN";
  }, 700);
}, 1200));
</script></body>"""


@pytest.mark.skipif(BROWSER is None, reason="no chromium: apt-get install chromium")
@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_sorts_and_draws_in_chromium_without_network_or_errors(
    width: int, make_result: MakeResult, tmp_path: Path
) -> None:
    page = to_html(Comparison.from_results(some_results(make_result)), tmp_path)
    (tmp_path / "page.html").write_text(PROBE.join(page.rsplit("</body>", 1)), encoding="utf-8")
    assert BROWSER is not None
    flags = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    flags += "--disable-component-update --disable-sync --enable-logging=stderr --dump-dom --virtual-time-budget=6000"
    ran = subprocess.run(
        [
            *(BROWSER, *flags.split(), f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900"),
            *("--host-resolver-rules=MAP * ~NOTFOUND", (tmp_path / "page.html").as_uri()),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert not [line for line in ran.stderr.splitlines() if "CONSOLE" in line]
    seen = json.loads(ran.stdout.split("SEEN")[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    assert seen["start"] == ["infvit", "vit", "linear_infvit", EVIL]
    assert seen["loss"] == ["infvit", "vit", "linear_infvit", EVIL]
    assert seen["loss_again"] == [EVIL, "linear_infvit", "vit", "infvit"]
    assert seen["model"] == [EVIL, "infvit", "linear_infvit", "vit"]
    assert seen["sort_marks"] == ["ascending"]
    assert seen["shown"] == ["val_top1", "train_loss", "seconds"]
    # Four rows, of which one is not comparable and has one seed only: no interval.
    assert (seen["lines"], seen["dashed"], seen["bars"], seen["hollow"]) == ([4, 4], 1, 3, 1)
    assert seen["requests"] == []
    assert seen["scroll"] <= 0
    assert seen["title"] != "broken into"
