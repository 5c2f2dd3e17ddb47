"""`python eval.py eval=attention` on the command line: seeds in one table, columns of runs, boxes, errors."""

import json
from pathlib import Path
from typing import Any

import pytest

from infvit.compare import Comparison, to_markdown
from tests.measure.attention.imagenet_tree import write_annotation, write_image

pytestmark = pytest.mark.slow

SMALL = ["recipe.epochs=1", "recipe.warmup_epochs=0", "size.dim=16", "size.depth=2", "logger=csv", "data/loader=torch"]
SMALL += ["~callbacks.training_stats", "~callbacks.attention_maps", "+trainer.limit_train_batches=2"]
QUICK = ("step=0.5", "device=cpu", "threads=1")


def written(folder: Path, name: str = "attention") -> list[dict[str, Any]]:
    """The rows of the latest measurement."""
    path = sorted(folder.glob(f"runs/eval/attention/*/{name}.json"))[-1]
    return json.loads(path.read_text())["rows"]


def ckpt(run: Path) -> str:
    return str(run / "checkpoints" / "last.ckpt")


def test_seeds_of_two_models_become_one_table_and_columns_of_their_comparison(cli, tmp_path):
    sweep = ("train", "-m", "experiment=digits", "~hydra.callbacks.comparison", *SMALL)
    trained = cli(*sweep, "model=vit,linear_infvit,none", "seed=0,1").ok()
    results = [(run / "result.json").read_bytes() for run in trained.runs()]
    pattern = "ckpt=runs/digits/digits_sweep/*/checkpoints/last.ckpt"
    methods = "methods=[attention,rollout,weights,random]"
    done = cli("eval", "eval=attention", pattern, methods, *QUICK).ok()
    assert max(len(line) for line in done.out.splitlines() if "/attention/" not in line) <= 80
    for words in (
        "vit, 2 seeds",
        "linear_infvit, 2 seeds",
        "3/6 none seed 0: 360 images, no maps: its attention has no weights of tokens",
        "vit seed 0, vit seed 1: weights not offered: it offers attention, rollout,",
        "linear_infvit seed 0, linear_infvit seed 1: rollout not offered: it offers attention, katz_in,",
        "Patches painted in their image's mean colour",
        "Against the ink's own boxes",
        "Output over tokens: effective rank, collisions of different queries, own share",
    ):
        assert words in " ".join(done.out.split())
    rows = written(tmp_path)
    assert [(row["model"], row["seed"], row["method"]) for row in rows] == [
        (model, seed, method)
        for model, own in (("linear_infvit", "weights"), ("vit", "rollout"))
        for seed in (0, 1)
        for method in ("attention", "rollout", "weights", "random")
        if method in ("attention", own, "random")
    ]
    for row in rows:
        assert row["images"] == 360
        assert 0 < row["boxed_images"] <= 360
        for figure in ("morf_aoc", "lerf_auc", "roc_auc", "pr_auc", "pointing", "iou_best", "iou_fixed"):
            assert -0.5 < row[figure] < 1.5
            assert row[f"{figure}_ci95_half_width"] > 0
        assert row["iou_best"] >= row["guess"] - 1e-9  # at threshold 0 all pixels are meant
    random = [row["roc_auc"] for row in rows if row["method"] == "random"]
    assert random == pytest.approx([0.5] * 4, abs=0.05)
    assert rows[0] | {"method": "weights"} == rows[1]  # Linear-InfSA's weights are what its attention weighs with

    curves = written(tmp_path, "attention_curves")
    assert {row["share"] for row in curves} == {0.0, 0.5, 1.0}
    assert all(row["kept"] == 1 for row in curves if row["share"] == 0)
    layers = written(tmp_path, "attention_layers")
    cosine = [r for r in layers if r["model"] == "linear_infvit" and r["when"] == "trained" and r["block"] == "1"]
    assert [row["head"] for row in cosine] == ["all", "0", "1", "2", "3"] * 2
    for row in cosine:  # none of a head that is off for every image
        assert row["cosine_left"] is None if row["off"] == 1 else 0 < row["cosine_left"] <= 1
    whole = {r["model"]: r for r in layers if (r["when"], r["block"], r["head"]) == ("trained", "all", "all")}
    assert [whole[name]["collisions"] for name in ("linear_infvit", "none")] == [1, 0]
    rank = {name: row["effective_rank"] for name, row in whole.items()}
    assert rank["linear_infvit"] == pytest.approx(1, abs=1e-3)
    assert 1 < rank["vit"] < rank["none"]
    assert [whole[name]["entropy"] is None for name in ("vit", "none")] == [False, True]
    (folder,) = tmp_path.glob("runs/eval/attention/*")
    for picture in ("attention_curves.png", "attention_rank.png"):
        assert (folder / picture).stat().st_size > 10_000
    assert "gallery.html" in done.out
    assert 'data-method="0"' in (folder / "gallery.html").read_text()
    for file in folder.glob("*.json"):  # as W&B's tables ask
        found = json.loads(file.read_text())["rows"]
        assert all(list(row) == list(found[0]) for row in found)

    comparison = to_markdown(Comparison.from_dirs([tmp_path / "runs/digits"]))
    header, _, *lines = (line for line in comparison.splitlines() if line.startswith("|"))
    table = {line.split(" | ")[0]: dict(zip(header.split(" | "), line.split(" | "), strict=True)) for line in lines}
    for model in ("vit", "linear_infvit"):
        own = [row for row in rows if row["model"] == model and row["method"] == "attention"]
        for figure, title in (("morf_aoc", "MoRF-AOC"), ("roc_auc", "ROC-AUC"), ("pr_auc", "PR-AUC")):
            mean = sum(row[figure] for row in own) / 2
            assert table[f"| {model}"][f"{title} %"].startswith(f"{100 * mean:.2f} ± ")
    assert "against the ink's own boxes" in comparison
    assert [(run / "result.json").read_bytes() for run in trained.runs()] == results


def test_the_start_is_the_untrained_model(cli, tmp_path):
    """Without a training step the layers are the same before and after."""
    still = ("recipe.base_lr=0", "recipe.schedule.min_lr=0", "recipe.optimizer.weight_decay=0")
    trained = cli("train", "experiment=digits", "model=infvit", "seed=3", *SMALL, *still).ok()
    (run,) = trained.runs()
    cli("eval", "eval=attention", f"ckpt={ckpt(run)}", "methods=[random]", "images=40", *QUICK).ok()
    layers = written(tmp_path, "attention_layers")
    start, after = ([row | {"when": ""} for row in layers if row["when"] == when] for when in ("start", "trained"))
    assert start == after
    assert start[0]["cosine_left"] is not None
    assert not (run / "attention.json").exists()  # 40 of 360 images


def test_imagenets_boxes_and_their_notes(cli, tmp_path):
    tree = tmp_path / "tree"
    boxes, size = [(10, 12, 40, 50)], (64, 80)
    for label, placed in enumerate((boxes, boxes, [*boxes, (70, 0, 90, 40)])):
        for i in range(2):
            write_image(tree, "train", label, f"{label}_{i}", size, boxes)
        path = write_image(tree, "val", label, f"ILSVRC2012_val_0000000{label}", size, boxes)
        write_annotation(tree, path.stem, size, placed)
    whole = write_image(tree, "val", 1, "ILSVRC2012_val_00000008", size, [(0, 0, 63, 79)])
    write_annotation(tree, whole.stem, size, [(0, 0, 63, 79)])
    write_image(tree, "val", 2, "ILSVRC2012_val_00000009", size, boxes)  # and no annotation
    data = ("data=imagenet", f"data.root={tree}", "data.num_classes=3", "data.module.workers=0")
    tiny = ("size=tiny", "recipe=digits", "recipe.batch_size=6", "model=linear_infvit")
    trained = cli("train", *data, *tiny, *SMALL).ok()
    (run,) = trained.runs()
    found = ("eval", "eval=attention", f"ckpt={ckpt(run)}", *QUICK)

    done = cli(*found, f"boxes={tree}", "removal=tokens", "methods=[attention]").ok()
    assert "Patches dropped as tokens" in done.out
    assert "1 boxes that are empty or outside of their image, left out" in done.out
    assert "1 images without an annotation" in done.out
    assert "2 images left out of localisation: nothing or everything is in a box" in done.out
    (row,) = written(tmp_path)
    assert (row["images"], row["boxed_images"]) == (5, 3)
    without = cli(*found, "methods=[attention]")
    assert "no localisation: boxes=DIR names" in without.out
    (row,) = written(tmp_path)
    assert row["roc_auc"] is None

    older = run / "checkpoints" / "older.ckpt"
    older.write_bytes((run / "checkpoints" / "last.ckpt").read_bytes())
    kept = (run / "attention.json").read_bytes()
    done = cli("eval", "eval=attention", f"ckpt={older}", "removal=blur", "methods=[attention]", *QUICK)
    assert "older.ckpt is not its run's last checkpoint" in done.out
    assert (run / "attention.json").read_bytes() == kept

    for arguments, message in (
        (["boxes=nowhere"], "boxes=nowhere holds no annotation of 5 images, such as ILSVRC2012_val_00000000.xml"),
        (["methods=[rollout]"], "methods=rollout not offered: linear_infvit offers attention, katz_in,"),
        (["methods=[gradcam]"], "methods=gradcam is unknown: expected one of attention, rollout"),
        (["removal=black"], "removal=black: Options expects 'mean', 'blur' or 'tokens'"),
        (["upsampling=bicubic"], "upsampling=bicubic: Options expects 'nearest' or 'bilinear'"),
        (["step=0"], "step=0 is not a share of the patches"),
        (["threshold=2"], "threshold=2 is not a share of a map's largest value"),
        (["images=0"], "images=0 is not a number of images"),
        (["block=7"], "block=7 is out of range: the model has 2 blocks"),
        ([f"ckpt=[{ckpt(run)},{older}]"], ": give each seed once"),
        (["ckpt=nowhere/*.ckpt"], "ckpt=nowhere/*.ckpt matches no file"),
        (["ckpt=nowhere/last.ckpt"], "checkpoint nowhere/last.ckpt does not exist"),
    ):
        refused = cli(*found, *arguments)
        assert message in refused.error()
        assert refused.err.count("\n") == 1
