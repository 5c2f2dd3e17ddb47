"""What a run scores on other data: kept beside its result, shown as a column, and never mistaken for another run's."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest

from infvit.compare import Comparison, to_csv, to_html, to_latex, to_markdown, to_text
from infvit.compare.evaluation import keep, keep_maps
from infvit.run.result import Result
from tests.compare.conftest import MakeResult, MakeSweep

V2 = "imagenet_v2_matched-frequency"


def row(top1: float, data: str = V2, fingerprint: str = "f00d") -> dict[str, Any]:
    return {"data": data, "fingerprint": fingerprint, "images": 10, "top1": top1, "top5": 1.0, "loss": 0.5}


def test_a_test_set_is_a_column_with_its_interval_over_seeds(make_result: MakeResult, make_sweep: MakeSweep) -> None:
    folders = make_sweep([make_result(model, seed) for model in ("vit", "infvit") for seed in (0, 1)])
    before = [(folder / "result.json").read_bytes() for folder in folders]
    for folder, top1 in zip(folders, (0.60, 0.64), strict=False):
        assert keep(folder, row(top1)) == folder / "evaluations" / f"{V2}-f00d.json"
    comparison = Comparison.from_dirs(folders)
    for text in (to_text(comparison, 140), to_markdown(comparison), to_latex(comparison), to_html(comparison)):
        assert "V2 top-1" in text
        assert "62.00 ± 25.41" in " ".join(text.replace(r"$\pm$", "±").split())  # t(1) * 0.02
    assert "V2 top-1 %" in to_text(comparison, 80).splitlines()[0]  # before the speed, which was not asked for
    shown = {line["model"]: line for line in csv.DictReader(io.StringIO(to_csv(comparison)))}
    assert shown["vit"][f"{V2}_top1"] == "0.62"
    assert shown["infvit"][f"{V2}_top1"] == ""
    assert [(folder / "result.json").read_bytes() for folder in folders] == before
    keep(folders[0], row(0.70))
    assert "67.00 ± 38.12" in to_markdown(Comparison.from_dirs(folders))  # measured again
    (folders[1] / "evaluations" / f"{V2}-f00d.json").unlink()
    assert "vit: of 2 finished seeds, not all have V2 top-1" in to_text(Comparison.from_dirs(folders))


def test_different_data_of_one_name_are_columns_of_their_own(make_result: MakeResult, make_sweep: MakeSweep) -> None:
    folders = make_sweep([make_result(seed=0), make_result(seed=1)])
    keep(folders[0], row(0.5, "imagefolder", "1a2b3c4d5e6f"))
    keep(folders[1], row(0.6, "imagefolder", "99887766aabb"))
    assert Comparison.from_dirs(folders).elsewhere == ["imagefolder#1a2b3c4d", "imagefolder#99887766"]


def test_a_run_keeps_different_data_of_one_name_and_the_latest_of_the_same(
    make_result: MakeResult, make_sweep: MakeSweep
) -> None:
    (folder,) = make_sweep([make_result()])
    measured = [("imagefolder", 0.5, "1a2b3c4d5e6f"), ("imagefolder", 0.6, "99887766aabb"), ("sketch", 0.7, "f00d")]
    measured.append(("imagefolder", 0.8, "1a2b3c4d5e6f"))
    paths = [keep(folder, row(top1, data, fingerprint)) for data, top1, fingerprint in measured]
    assert len(set(paths)) == 3
    (only,) = Comparison.from_dirs([folder]).rows
    shown = {name: top1.mean for name, top1 in only.elsewhere.items()}
    assert shown == {"imagefolder#1a2b3c4d": 0.8, "imagefolder#99887766": 0.6, "sketch": 0.7}
    (folder / "evaluations" / "sketch.json").write_bytes(paths[2].read_bytes())  # as it was named before
    keep(folder, row(0.75, "sketch", "f00d"))
    assert Comparison.from_dirs([folder]).rows[0].elsewhere["sketch"].mean == 0.75


def test_the_runs_own_data_and_an_unfinished_run_are_not_kept(make_result: MakeResult, make_sweep: MakeSweep) -> None:
    done, running = make_sweep([make_result(seed=0), make_result(seed=1, status="running")])
    own = Result.read(done / "result.json").data_fingerprint
    assert keep(done, row(0.5, "digits", own)) is None
    assert keep(running, row(0.5)) is None
    assert not (done / "evaluations").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ('{"data": "imagenet_', "is not JSON"),
        ("[1]", "is no evaluation"),
        (json.dumps(row(0.5) | {"top1": "high"}), "is no evaluation"),
        (json.dumps(row(0.5) | {"data": "test"}), "is no evaluation"),  # it would replace the run's own numbers
        (json.dumps(row(0.5) | {"run_started": "2020-01-01T00:00:00+00:00"}), "is of an earlier run in this folder"),
    ],
)
def test_what_is_no_evaluation_of_this_run_is_named_and_not_counted(
    content: str, reason: str, make_result: MakeResult, make_sweep: MakeSweep
) -> None:
    (folder,) = make_sweep([make_result()])
    path = Path(folder / "evaluations" / f"{V2}.json")
    path.parent.mkdir()
    path.write_text(content)
    comparison = Comparison.from_dirs([folder])
    assert comparison.elsewhere == []
    ((where, why),) = [(bad.path, bad.reason) for bad in comparison.unreadable]
    assert where == str(path)
    assert why.startswith(reason)
    assert comparison.rows[0].top1.mean == 0.9


MAPS = {"morf_aoc": 0.6, "roc_auc": 0.75, "pr_auc": None}


def test_the_quality_of_maps_is_columns_beside_what_is_published(
    make_result: MakeResult, make_sweep: MakeSweep
) -> None:
    paper = {"data": "imagenet", "dim": 1024, "heads": 16, "patch": 16, "image_size": 224, "num_classes": 1000}
    paper |= {"recipe": "deit", "epochs": 300}
    folders = make_sweep([make_result(model, seed, **paper) for model in ("vit", "infvit") for seed in (0, 1)])
    for folder, aoc in zip(folders, (0.60, 0.64), strict=False):
        path = keep_maps(folder, MAPS | {"morf_aoc": aoc}, "9f3ac2d417b0", "patches blurred away")
        assert path == folder / "attention.json"
    comparison = Comparison.from_dirs(folders)
    for text in (to_text(comparison, 250), to_markdown(comparison), to_latex(comparison), to_html(comparison)):
        plain = " ".join(text.replace(r"$\pm$", "±").replace(r"\%", "%").split())
        assert "62.00 ± 25.41" in plain  # t(1) * 0.02
        assert "75.00 ± 0.00" in plain
        assert "MoRF-AOC 42.6 ROC-AUC 53.8 PR-AUC 56.2" in plain  # of softmax
        assert "MoRF-AOC 71.7 ROC-AUC 77.3 PR-AUC 72.4" in plain
        assert (
            "MoRF-AOC, ROC-AUC: of the maps that the attention of each model is by itself, patches blurred away."
            in plain
        )
        assert "PR-AUC %" not in plain  # which nobody measured
    shown = {line["model"]: line for line in csv.DictReader(io.StringIO(to_csv(comparison)))}
    assert (shown["vit"]["morf_aoc"], shown["vit"]["published_morf_aoc"]) == ("0.62", "0.426")
    assert (shown["infvit"]["morf_aoc"], shown["infvit"]["published_morf_aoc"]) == ("", "0.717")
    assert "in different ways" not in to_text(comparison, 250)
    keep_maps(folders[2], MAPS, "9f3ac2d417b0", "patches dropped as tokens")
    assert "the quality of maps was measured in different ways" in to_text(Comparison.from_dirs(folders), 250)


def test_maps_of_other_data_and_of_an_unfinished_run_are_not_kept(
    make_result: MakeResult, make_sweep: MakeSweep
) -> None:
    done, running = make_sweep([make_result(seed=0), make_result(seed=1, status="running")])
    assert keep_maps(done, MAPS, "f00d", "") is None
    assert keep_maps(running, MAPS, "9f3ac2d417b0", "") is None
    assert not (done / "attention.json").exists()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "is not JSON"),
        (json.dumps(MAPS), "is no quality of maps"),
        (json.dumps(MAPS | {"how": "", "roc_auc": "good"}), "is no quality of maps"),
        (json.dumps(MAPS | {"how": "", "run_started": "2020"}), "is of an earlier run in this folder"),
    ],
)
def test_a_file_that_holds_no_maps_of_this_run_is_named(
    content: str, reason: str, make_result: MakeResult, make_sweep: MakeSweep
) -> None:
    (folder,) = make_sweep([make_result()])
    (folder / "attention.json").write_text(content)
    comparison = Comparison.from_dirs([folder])
    assert comparison.maps == []
    ((where, why),) = [(bad.path, bad.reason) for bad in comparison.unreadable]
    assert where == str(folder / "attention.json")
    assert why.startswith(reason)
