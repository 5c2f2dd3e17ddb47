"""eval=efficiency at tiny size: tables, files and charts, limits, mistakes. No test depends on the clock."""

import json
import math
from itertools import groupby, pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from PIL import Image

from infvit.measure.efficiency import timing
from infvit.measure.efficiency.energy import NOT_HERE, EnergyMeter
from infvit.measure.efficiency.passes import Footprint, fitting_together
from infvit.measure.subprocess_case import DONE, OUT_OF_MEMORY, TOO_SLOW
from tests.cli.test_conf import composed

TINY = ["eval=efficiency", "size=tiny", "device=cpu", "threads=1"]
COUNTS_ENERGY = Path("/sys/class/powercap/intel-rapl").exists()


def result_of(outcome):
    (path,) = outcome.ok().folder.glob("runs/eval/efficiency/*/efficiency.json")
    return path.parent, json.loads(path.read_text())


@pytest.mark.slow
def test_table_json_pictures_and_wandb_agree(cli):
    models = "models=[vit,vit_unfused]"
    outcome = cli("eval", *TINY, models, "resolutions=[16,8]", "passes=[forward]", "rounds=3", "wandb=true")
    folder, result = result_of(outcome)
    rows = {(row["model"], row["resolution"]): row for row in result["rows"]}
    assert list(rows) == [("vit", 8), ("vit_unfused", 8), ("vit", 16), ("vit_unfused", 16)]
    assert max(map(len, outcome.out.split("GFLOP/s\n", 1)[1].splitlines()[:-2])) <= 80
    table, markdown = outcome.out, (folder / "efficiency.md").read_text()
    for case in result["cases"]:
        seconds, row = case["seconds"], rows[case["model"], case["resolution"]]
        baseline = next(c for c in result["cases"] if (c["model"], c["resolution"]) == ("vit", case["resolution"]))
        ratios = [b / s for b, s in zip(baseline["seconds"], seconds, strict=True)]
        shares = [case["flops"] / s / p for s, p in zip(seconds, case["peak_flops_per_second"], strict=True)]
        assert len(seconds) == 3
        assert row["tokens"] == (case["resolution"] // 2) ** 2 + 1
        assert row["seconds"] == median(seconds)
        assert (row["seconds_low"], row["seconds_high"]) == (min(seconds), max(seconds))
        assert row["images_per_second"] == pytest.approx(1 / median(seconds))
        assert row["times_as_fast_as_vit"] == pytest.approx(median(ratios))
        assert row["times_as_fast_as_vit_high"] == pytest.approx(max(ratios))
        assert row["share_of_peak"] == pytest.approx(median(shares))
        assert row["peak_bytes"] > row["added_bytes"] > 4 * row["parameters"]
        if case["model"] == "vit_unfused":
            shown = f"{median(ratios):.2f}x ({min(ratios):.2f} – {max(ratios):.2f})"
            assert shown in table
            assert shown in markdown
    sizes, times = [17, 65], [rows["vit", side]["seconds"] for side in (8, 16)]
    fitted = math.log(times[1] / times[0]) / math.log(sizes[1] / sizes[0])
    assert any(line.split() == ["vit", f"{fitted:.2f}"] for line in table.splitlines())
    for words in ("batch 1", "fp32", "not compiled", "1 thread,", "3 rounds", "models=[vit,vit_unfused]"):
        assert words in table
        assert words in markdown
    for text in (outcome.out, markdown):
        assert (NOT_HERE in text) != COUNTS_ENERGY
    assert (rows["vit", 8]["joules_per_image"] is None) != COUNTS_ENERGY
    assert Image.open(folder / "efficiency_forward.png").width > 800
    (logged,) = folder.glob("wandb/offline-run-*/files/media/table/efficiency_*.table.json")
    logged = json.loads(logged.read_text())
    assert [dict(zip(logged["columns"], row, strict=True)) for row in logged["data"]] == result["rows"]
    assert list(folder.glob("wandb/offline-run-*/files/media/images/efficiency_forward_*.png"))


@pytest.mark.slow
def test_a_training_step_in_bfloat16(cli):
    """Counted as forward and backward, and holding gradients and the optimizer's moments in float32."""
    arguments = ["models=[linear_infvit]", "resolutions=[8]", "passes=[training]", "rounds=2", "precision=bf16"]
    folder, result = result_of(cli("eval", *TINY, *arguments, "batch_size=4", "size.depth=2"))
    assert result["size"] == "tiny size.depth=2"
    (row,) = result["rows"]
    assert row["status"] == DONE
    assert row["added_bytes"] > 4 * 4 * row["parameters"]
    assert row["images_per_second"] == pytest.approx(4 / row["seconds"])
    assert row["flops_per_second"] == pytest.approx(row["flops"] * 4 / row["seconds"])
    assert (folder / "efficiency_training.png").exists()
    assert not (folder / "efficiency_forward.png").exists()


@pytest.mark.slow
def test_out_of_memory_and_too_slow_are_results_and_the_others_finish(cli):
    """N × N matrices of 4.3 GB over the limit of 3; then 36 TFLOPs, more than two minutes on any one core."""
    limits = ["memory_limit=3", "time_limit=120", "size.depth=2"]
    models = "models=[vit_unfused,linear_infvit]"
    outcome = cli("eval", *TINY, models, "resolutions=[256,1024]", "passes=[forward]", "rounds=2", *limits)
    _, result = result_of(outcome)
    rows = {(row["model"], row["resolution"]): row for row in result["rows"]}
    assert rows["vit_unfused", 256]["status"] == OUT_OF_MEMORY
    assert "3.0 GB" in rows["vit_unfused", 256]["note"]
    assert rows["vit_unfused", 1024]["status"] == TOO_SLOW
    assert "products alone" in rows["vit_unfused", 1024]["note"]
    for side in (256, 1024):
        assert rows["vit_unfused", side]["seconds"] is None
        assert rows["linear_infvit", side]["status"] == DONE
        assert rows["linear_infvit", side]["seconds"] > 0
    assert OUT_OF_MEMORY in outcome.out.partition("Forward pass")[2]
    assert TOO_SLOW in outcome.out.partition("Forward pass")[2]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["models=[vit,nothing]"], ["model=nothing", "linear_infvit"]),
        (["models=[]"], ["models"]),
        (["resolutions=[8,9]"], ["9", "patch size 2", "8 or 10"]),
        (["resolutions=[large]"], ["large", "valid integer"]),
        (["rounds=1"], ["rounds=1", "2"]),
        (["precision=fp8"], ["precision=fp8", "bf16"]),
        (["passes=[backward]"], ["backward", "training"]),
        (["batch_size=0"], ["batch_size=0"]),
        (["time_limit=0"], ["time_limit=0"]),
        (["device=tpu"], ["device=tpu", "cuda"]),
    ],
)
def test_mistakes_are_reported_before_anything_runs(cli, arguments, words):
    outcome = cli("eval", *TINY, "models=[vit]", "resolutions=[8]", *arguments)
    assert all(word in outcome.error() for word in words)
    assert not outcome.out
    assert not list(outcome.folder.glob("runs/**/*.json"))


def test_the_papers_setting_composes():
    cfg = composed("eval=efficiency_paper", script="eval")
    assert cfg.models == ["vit", "vit_unfused", "linear_infvit"]
    assert (cfg.resolutions, cfg.batch_size, cfg.size.dim, cfg.size.depth) == ([1024], 1, 1024, 4)


def test_steps_take_turns_in_every_round(monkeypatch):
    monkeypatch.setattr(timing, "TURN", 0)
    calls = []
    seconds = timing.race({name: lambda name=name: calls.append(name) for name in "abc"}, 4, "cpu")
    assert [name for name, _ in groupby(calls)] == list("abc") * 5
    assert {name: len(values) for name, values in seconds.items()} == dict.fromkeys("abc", 4)


def test_exponents_and_ratios():
    sizes, values = [197, 1025, 4097, 16385], [1.0, 7.0, 22.0, 130.0]
    assert timing.exponent(sizes, [3e-6 * n**1.37 for n in sizes]) == pytest.approx(1.37)
    assert timing.exponent(sizes, values) == pytest.approx(np.polyfit(np.log(sizes), np.log(values), 1)[0])
    assert timing.exponent([197], [1.0]) is None
    # A slow second round affects both, and leaves their ratio alone.
    assert timing.ratio([2, 20, 2], [1, 10, 1]) == timing.Spread(2, 2, 2)


def test_cases_timed_together_fit_into_memory_together():
    """Each holds its weights all the time, the largest needs its peak above them all."""
    prints = {name: Footprint(1.0, peak, peak, held) for name, peak, held in (("a", 5, 2), ("b", 9, 3), ("c", 4, 1))}
    fitting = [fitting_together(prints, free) for free in range(4, 14)]
    assert fitting[0] == ["c"]
    assert fitting[5:] == [["a", "c"], ["a", "c"], ["a", "b"], ["a", "b", "c"], ["a", "b", "c"]]
    assert all(len(a) <= len(b) or "b" in b for a, b in pairwise(fitting))


@pytest.mark.skipif(COUNTS_ENERGY, reason="this CPU counts its energy")
def test_energy_without_a_counter_is_not_measurable():
    meter = EnergyMeter("cpu")
    assert meter.note.startswith(NOT_HERE)
    assert meter.joules(lambda: None) is None
