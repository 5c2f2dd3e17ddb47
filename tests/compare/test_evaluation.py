"""Measurements stored beside a run's result are columns of the comparison and never counted for another run."""

import json
from typing import Any

import pytest

from infvit.compare import Comparison, records, to_text
from infvit.compare.evaluation import keep, keep_maps
from infvit.run.result import Result
from tests.compare.conftest import IMAGENET

V2 = "imagenet_v2_matched-frequency"


def row(top1: float, data: str = V2, fingerprint: str = "f00d") -> dict[str, Any]:
    return {"data": data, "fingerprint": fingerprint, "images": 10, "top1": top1, "top5": 1.0, "loss": 0.5}


def test_a_test_set_is_a_column_with_its_interval_over_seeds(make_result, make_sweep, printed):
    folders = make_sweep([make_result(model, seed) for model in ("vit", "infvit") for seed in (0, 1)])
    before = [(folder / "result.json").read_bytes() for folder in folders]
    for folder, top1 in zip(folders, (0.60, 0.64), strict=False):
        assert keep(folder, row(top1)) == folder / "evaluations" / f"{V2}-f00d.json"
    comparison = Comparison.from_dirs(folders)
    text = printed(comparison)
    assert "V2 top-1" in text
    assert "62.00 ± 25.41" in text  # t(1) * 0.02
    assert "V2 top-1 %" in to_text(comparison, 80).splitlines()[0]  # before the speed
    rows = {line["model"]: line for line in records(comparison)}
    assert (rows["vit"][f"{V2}_top1"], rows["infvit"][f"{V2}_top1"]) == (0.62, None)
    assert [(folder / "result.json").read_bytes() for folder in folders] == before
    keep(folders[0], row(0.70))
    assert "67.00 ± 38.12" in to_text(Comparison.from_dirs(folders), 80)  # measured again
    (folders[1] / "evaluations" / f"{V2}-f00d.json").unlink()
    assert "vit: of 2 finished seeds, not all have V2 top-1" in to_text(Comparison.from_dirs(folders))


@pytest.mark.parametrize("runs", [(0, 0), (0, 1)], ids=["of one run", "of two runs"])
def test_different_data_of_one_name_are_columns_of_their_own_and_the_latest_of_the_same_counts(
    runs, make_result, make_sweep
):
    folders = make_sweep([make_result(seed=0), make_result(seed=1)])
    first, second = (folders[run] for run in runs)
    for name in ("imagefolder", "test"):  # the run's own metrics are of "test"
        keep(first, row(0.5, name, "1a2b3c4d5e6f"))
    measured = [("imagefolder", 0.6, "99887766aabb"), ("sketch", 0.7, "f00d")]
    paths = {keep(second, row(top1, data, fingerprint)) for data, top1, fingerprint in measured}
    assert len(paths | {keep(first, row(0.8, "imagefolder", "1a2b3c4d5e6f"))}) == 3
    comparison = Comparison.from_dirs(folders)
    top1 = {name: comparison.rows[0].metric(f"{name}/top1").mean for name in comparison.test_sets}
    assert top1 == {"imagefolder#1a2b3c4d": 0.8, "imagefolder#99887766": 0.6, "sketch": 0.7, "test#1a2b3c4d": 0.5}
    assert comparison.rows[0].top1.mean == 0.9


MAPS = {"morf_aoc": 0.6, "roc_auc": 0.75, "pr_auc": None}


def test_the_scores_of_maps_are_columns_beside_what_is_published(make_result, make_sweep, printed):
    folders = make_sweep([make_result(model, seed, **IMAGENET) for model in ("vit", "infvit") for seed in (0, 1)])
    for folder, aoc in zip(folders, (0.60, 0.64), strict=False):
        path = keep_maps(folder, MAPS | {"morf_aoc": aoc}, "9f3ac2d417b0", "patches blurred away")
        assert path == folder / "attention.json"
    comparison = Comparison.from_dirs(folders)
    text = printed(comparison)
    for words in (
        "62.00 ± 25.41",  # t(1) * 0.02
        "75.00 ± 0.00",
        "MoRF-AOC 42.6 ROC-AUC 53.8 PR-AUC 56.2",  # of softmax
        "MoRF-AOC 71.7 ROC-AUC 77.3 PR-AUC 72.4",
        "MoRF-AOC, ROC-AUC: of the maps that the attention of each model is by itself, patches blurred away.",
    ):
        assert words in text
    assert "PR-AUC %" not in text  # not measured
    rows = {line["model"]: line for line in records(comparison)}
    assert (rows["vit"]["morf_aoc"], rows["vit"]["published_morf_aoc"]) == (0.62, 0.426)
    assert (rows["infvit"]["morf_aoc"], rows["infvit"]["published_morf_aoc"]) == (None, 0.717)
    assert "in different ways" not in text
    keep_maps(folders[2], MAPS, "9f3ac2d417b0", "patches dropped as tokens")
    assert "the quality of maps was measured in different ways" in printed(Comparison.from_dirs(folders))


def test_accuracies_on_the_runs_own_data_maps_of_other_data_and_an_unfinished_run_are_not_kept(make_result, make_sweep):
    done, running = make_sweep([make_result(seed=0), make_result(seed=1, status="running")])
    own = Result.read(done / "result.json").data_fingerprint
    assert keep(done, row(0.5, "digits", own)) is keep(running, row(0.5)) is None
    assert keep_maps(done, MAPS, "f00d", "") is keep_maps(running, MAPS, own, "") is None
    assert [path.name for folder in (done, running) for path in folder.iterdir()] == ["result.json"] * 2


ACCURACY = f"evaluations/{V2}.json"
MAPS_EXPECTED = "is not a measurement: expected how, morf_aoc, roc_auc, pr_auc"


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        (ACCURACY, '{"data": "imagenet_', "is not a measurement"),
        (ACCURACY, "[1]", "is not a measurement: expected data, fingerprint, top1, top5, loss"),
        (ACCURACY, json.dumps(row(0.5) | {"top1": "high"}), "is not a measurement"),
        (ACCURACY, json.dumps(row(0.5) | {"run_started": "2020"}), "is of an earlier run in this folder"),
        ("attention.json", "{", MAPS_EXPECTED),
        ("attention.json", json.dumps(MAPS), MAPS_EXPECTED),
        ("attention.json", json.dumps(MAPS | {"how": "", "roc_auc": "good"}), MAPS_EXPECTED),
        ("attention.json", json.dumps(MAPS | {"how": "", "run_started": "2020"}), "is of an earlier run"),
    ],
)
def test_a_file_that_is_not_a_measurement_of_this_run_is_named_and_not_counted(
    file, content, reason, make_result, make_sweep
):
    (folder,) = make_sweep([make_result()])
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    comparison = Comparison.from_dirs([folder])
    assert comparison.test_sets == comparison.maps == []
    ((where, why),) = [(bad.path, bad.reason) for bad in comparison.unreadable]
    assert where == str(path)
    assert why.startswith(reason)
    assert comparison.rows[0].top1.mean == 0.9
