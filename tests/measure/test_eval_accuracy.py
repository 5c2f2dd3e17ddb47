"""`python eval.py`: several models in one table, several processes, ImageNet's ReaL labels, mistakes."""

import csv
import json
import os
import shutil
import sys
from pathlib import Path

import huggingface_hub
import numpy as np
import pytest
import timm
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, RealLabelsImagenet

import eval as script
from data.datasets.digits import Digits
from infvit.cli import entrypoint
from infvit.compare import Comparison
from infvit.measure.accuracy import records
from tests.ranks import run_ranks

pytestmark = pytest.mark.slow

SYNSETS = list(ImageNetInfo("imagenet-1k").label_names())
QUICK = ["recipe.epochs=1", "recipe.warmup_epochs=0", "+trainer.limit_train_batches=4", "logger=csv"]
QUICK += ["data/loader=torch"]
RUNS = {}
"""Folders of runs by their arguments: tests that need the same one train it once, and get a copy each."""


def trained(cli, *arguments):
    """The checkpoint of a short run, and its result."""
    if arguments not in RUNS:
        outcome = cli("train", *QUICK, *arguments).ok()
        RUNS[arguments] = max(outcome.runs(), key=lambda run: run.stat().st_mtime)
    folder = shutil.copytree(RUNS[arguments], Path("copies", RUNS[arguments].name).absolute(), symlinks=True)
    return folder / "checkpoints" / "last.ckpt", json.loads((folder / "result.json").read_text())


def evaluated(cli, *arguments):
    """Evaluates; returns the output, the folder, and the rows of accuracy.json and differences.json."""
    outcome = cli("eval", *arguments, "data.module.workers=0" if any("data=" in a for a in arguments) else "threads=1")
    assert outcome.code == 0, outcome.err
    folder = max(outcome.folder.glob("runs/eval/accuracy/*"), key=lambda run: run.stat().st_mtime)
    files = [folder / f"{name}.json" for name in ("accuracy", "differences")]
    return outcome.out, folder, *(json.loads(file.read_text())["rows"] if file.exists() else [] for file in files)


def test_checkpoints_are_one_table_with_their_differences_on_the_same_images(cli):
    path, result = trained(cli, "experiment=digits", "model=vit")
    run = path.parents[1]
    other = shutil.copytree(run, run.with_name("other")) / "checkpoints" / "last.ckpt"
    content = torch.load(other, weights_only=True)
    content["state_dict"]["net.head.weight"] += 0.1 * torch.randn(10, 64, generator=torch.manual_seed(0))
    torch.save(content, other)
    out, folder, rows, differences = evaluated(cli, f"ckpt=[{path},{other}]")
    names = [run.name, "other"]  # the model's is not enough
    assert [(row["name"], row["model"]) for row in rows] == [(name, "vit") for name in names]
    for metric in ("top1", "top5", "loss"):  # which torchmetrics made
        assert rows[0][metric] == pytest.approx(result["metrics"][f"test/{metric}"], abs=1e-6)
    for row in rows:
        for metric in ("top1", "top5", "loss"):
            assert row[f"{metric}_low"] <= row[metric] <= row[f"{metric}_high"]
        records = np.load(folder / f"{row['name']}.exact.npz")
        assert records["index"].tolist() == list(range(360))
        with (folder / f"{row['name']}.exact.classes.csv").open() as file:
            classes = list(csv.DictReader(file))
        assert sum(int(line["images"]) for line in classes) == 360
        hits = sum(int(line["images"]) * float(line["top1"]) for line in classes)
        assert hits / 360 == pytest.approx((records["top5"][:, 0] == records["label"]).mean()) == row["top1"]
    (row,) = differences
    assert (row["name"], row["minus"], row["images"]) == (names[1], names[0], 360)
    assert row["top1"] == pytest.approx(rows[1]["top1"] - rows[0]["top1"])
    for words in (f"{names[1]} − {names[0]}, exact", "1,000 bootstrap resamples of the images, seed 0", "15 bins"):
        assert words in out
    assert f"{row['differing']} of 360 predictions differ" in out
    table = out.split("\n\n", 1)[1].splitlines()
    assert max(len(line) for line in table if not line.startswith("/")) <= 80

    pytest.importorskip("ffcv")
    out, _, rows, ((difference,)) = evaluated(cli, f"ckpt={path}", "pipeline=both")
    assert [(row["name"], row["pipeline"]) for row in rows] == [("vit", "exact"), ("vit", "ffcv")]
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], abs=1e-6)  # 8 × 8 pixels, which neither resamples
    assert (difference["pipeline"], difference["minus_pipeline"], difference["differing"]) == ("ffcv", "exact", 0)
    assert "vit, ffcv − exact" in out


def process(rank, processes, port, arguments):
    """One of the processes of a distributed evaluation, as a launcher starts it."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "NODE_RANK": "0"}
    os.environ |= {"LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
    sys.argv = ["eval.py", *arguments]
    entrypoint.run(script.evaluate)


def distributed(folder, processes, *arguments):
    """Rows and records of an evaluation by so many gloo processes."""
    options = [f"hydra.run.dir={folder}", "trainer=ddp_cpu", f"trainer.devices={processes}", *arguments]
    run_ranks(process, (processes, find_free_network_port(), options), processes)
    return json.loads((folder / "accuracy.json").read_text())["rows"], np.load(folder / "vit.exact.npz")


def test_three_processes_count_every_image_once_and_give_the_numbers_of_one(cli, tmp_path):
    rng = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 31)):
        for i in range(count):
            path = tmp_path / "tree" / split / "ab"[i % 2] / f"{i:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    mine = ["data=imagefolder", f"data.root={tmp_path / 'tree'}", "data.module.workers=0"]
    ckpt, _ = trained(cli, *mine, "model=vit", "size=tiny", "recipe=digits", "recipe.batch_size=16")
    for images in (31, 2):  # 31 have no equal shares; of 2 not every process has one
        for path in (tmp_path / "tree" / "val").glob("*/*"):
            if int(path.stem) >= images:
                path.unlink()
        _, folder, (alone,), _ = evaluated(cli, f"ckpt={ckpt}", *mine)
        records = np.load(folder / "vit.exact.npz")
        (row,), theirs = distributed(tmp_path / str(images), 3, f"ckpt={ckpt}", *mine)
        assert theirs["index"].tolist() == list(range(images)) == records["index"].tolist()
        assert row["images"] == images
        for metric in ("top1", "top5", "loss", "ece", "loss_low", "top1_high"):
            assert row[metric] == pytest.approx(alone[metric], abs=1e-6)
        for name in records:
            np.testing.assert_allclose(theirs[name], records[name], atol=1e-6)


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """Weights of timm's smallest ViT, and ImageNet's tree with an image a class, all alike, so that one class is seen.

    The validation images are named as ImageNet's; a tenth of them are those that have no ReaL label.
    """
    root = tmp_path_factory.mktemp("imagenet")
    Image.new("RGB", (20, 16), (200, 100, 50)).save(root / "image.JPEG")
    content = (root / "image.JPEG").read_bytes()
    real = RealLabelsImagenet([""] * 50_000).real_labels
    unlabelled, labelled = ([name for name in real if bool(real[name]) == known] for known in (False, True))
    names = [unlabelled[i] if i % 10 == 0 else labelled[i] for i in range(1000)]
    for synset, name in zip(SYNSETS, names, strict=True):
        for split in ("train", "val"):
            path = root / "tree" / split / synset / name
            path.parent.mkdir(parents=True)
            path.write_bytes(content)
    torch.manual_seed(0)
    save_file(timm.create_model("test_vit").state_dict(), root / "test_vit.safetensors")
    return root, [real[name] for name in names]


def test_a_published_model_of_timm_on_imagenet_with_its_real_labels(cli, imagenet):
    root, real = imagenet
    model = ["model=timm", "model.name=test_vit", f"weights={root / 'test_vit.safetensors'}"]
    out, folder, (row,), _ = evaluated(cli, *model, "data=imagenet", f"data.root={root / 'tree'}")
    seen = np.load(folder / "test_vit.exact.npz")["top5"]
    assert (seen == seen[0]).all()
    assert row["top1"] == 0.001
    assert row["top5"] == 0.005
    assert row["real_images"] == 900
    labelled = [labels for labels in real if labels]
    assert row["real_top1"] == sum(seen[0, 0] in labels for labels in labelled) / 900
    assert row["real_top5"] == sum(not set(seen[0]).isdisjoint(labels) for labels in labelled) / 900
    for words in (
        "160 px, PIL bicubic, center crop 0.95, mean 0.5 0.5 0.5, std 0.5 0.5 0.5",  # its own, not the recipe's
        "ReaL: on 900 images of imagenet; 100 without such a label are left out",
        f"{timm.data.ImageNetInfo().label_name_to_description(SYNSETS[seen[0, 0]])} ({SYNSETS[seen[0, 0]]}), 1 image",
    ):
        assert words in out

    net = timm.create_model("test_vit", checkpoint_path=root / "test_vit.safetensors").eval()
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(net))
    with torch.no_grad():
        expected = net(transform(Image.open(root / "image.JPEG"))[None]).log_softmax(-1)[0]
    assert seen[0].tolist() == expected.topk(5).indices.tolist()
    assert row["loss"] == pytest.approx(-expected.mean().item(), abs=1e-4)  # each class once


@pytest.fixture
def digits_as_files(tmp_path):
    """The 360 test images of data=digits as PNG files, and none to train on."""
    images = Digits().split("val")
    for i in range(len(images)):
        image, label = images[i]
        path = tmp_path / "digits" / "val" / str(label) / f"{i:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return tmp_path / "digits"


def test_other_data_are_normalised_as_the_runs_were_and_stored_by_fingerprint(cli, digits_as_files):
    ckpt, result = trained(cli, "experiment=digits", "model=vit")
    run = ckpt.parents[1]
    other = ["data=imagefolder", f"data.root={digits_as_files}"]
    _, _, (row,), _ = evaluated(cli, f"ckpt={ckpt}", *other)
    assert row["loss"] == pytest.approx(result["metrics"]["test/loss"], abs=1e-6)  # the same images
    assert "mean 0.5 0.5 0.5, std 0.5 0.5 0.5" in row["view"]

    for path in (digits_as_files / "val").glob("*/*[13579].png"):
        path.unlink()
    evaluated(cli, f"ckpt={ckpt}", *other)
    evaluated(cli, f"ckpt={ckpt}", *other, "data.name=even")
    names = [name.partition("#")[0] for name in Comparison.from_dirs([run]).test_sets]
    assert names == ["even", "imagefolder", "imagefolder"]

    older = shutil.copy(ckpt, ckpt.with_name("older.ckpt"))
    before = {path: path.read_bytes() for path in (run / "evaluations").iterdir()}
    out, *_ = evaluated(cli, f"ckpt={older}", *other, "data.name=elsewhere")
    assert "older.ckpt is not its run's last checkpoint: no column of the run's table" in out
    assert {path: path.read_bytes() for path in (run / "evaluations").iterdir()} == before


def test_data_root_and_batch_size_alone_keep_the_rest_of_the_runs_data(cli, digits_as_files, monkeypatch):
    shutil.copytree(digits_as_files / "val", digits_as_files / "train")
    mine = ["data=imagefolder", f"data.root={digits_as_files}", "data.module.workers=0"]
    ckpt, result = trained(cli, *mine, "model=vit", "size=tiny", "recipe=digits", "recipe.batch_size=32")
    moved = shutil.move(digits_as_files, digits_as_files.with_name("moved"))
    assert "does not exist" in cli("eval", f"ckpt={ckpt}").error()
    sizes, test_step = [], records._Recorder.test_step

    def counted(self, batch, batch_idx):
        sizes.append(len(batch[1]))
        test_step(self, batch, batch_idx)

    monkeypatch.setattr(records._Recorder, "test_step", counted)
    for plus in ("", "+"):
        sizes.clear()
        batch = f"{plus}data.module.eval_batch_size=200"
        _, _, (row,), _ = evaluated(cli, f"ckpt={ckpt}", f"{plus}data.root={moved}", batch)
        assert sizes == [200, 160]
        assert row["loss"] == pytest.approx(result["metrics"]["test/loss"], abs=1e-6)
        assert row["fingerprint"] == result["data_fingerprint"]
    mistake = cli("eval", f"ckpt={ckpt}", f"data.root={moved}", "+data.module.eval_batchsize=2")
    assert "data.module.eval_batchsize: Key 'eval_batchsize' is not in struct" in mistake.error()

    monkeypatch.setattr(records._Recorder, "test_step", lambda *_: torch.empty(2**48))
    line = cli("eval", f"ckpt={ckpt}", f"data.root={moved}").error()
    assert "out of memory" in line
    assert "data.module.eval_batch_size=" in line


TIMM = ["data=imagenet", "model=timm"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["data=imagenet"], ["nothing to evaluate", "ckpt=RUN", "model=timm"]),
        (["data=imagenet", "pipeline=fast"], ["pipeline=fast", "'exact', 'ffcv' or 'both'"]),
        (["model=timm"], ["deit_tiny_patch16_224 brings no data", "data=imagenet"]),
        ([*TIMM, "model.name=deit"], ["model.name=deit is not a model of timm", "did you mean"]),
        ([*TIMM, "model.name=deit_tiny_patch16_224.x"], ["no weights deit_tiny_patch16_224.x", "224.fb_in1k"]),
        ([*TIMM, "model.name=test_vit", "weights=[a,b]"], ["2 files", "1 models"]),
        ([*TIMM, "model.name=test_vit", "weights=nowhere.pth"], ["weights=nowhere.pth does not exist"]),
        ([*TIMM, "model.name=vit_base_patch16_224.augreg_in21k"], ["21,843 classes", "1,000", "weights=FILE"]),
        (["data=digits", "model=timm"], ["the data have 10 (0, ...)", "ImageNet-1K's 1,000 by both"]),
        ([*TIMM, "model.name=infvit_4l_patch16_224"], ["infvit_4l_patch16_224", "weights=FILE"]),
        ([*TIMM, "model.name=test_vit"], ["test_vit cannot be downloaded", "huggingface.co", "weights=FILE"]),
    ],
)
def test_mistakes_are_reported_in_one_line(cli, imagenet, monkeypatch, arguments, words):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # or it retries for a minute
    root = f"data.root={imagenet[0] / 'tree'}"
    line = cli("eval", *arguments, *([root] if "data=imagenet" in arguments else [])).error()
    assert all(word in line for word in words)


def test_weights_of_another_model_or_of_other_classes_and_a_diverged_model_are_one_line(cli, imagenet):
    root, _ = imagenet
    model = ["model=timm", "model.name=test_vit", "data=digits"]
    line = cli("eval", *model, f"weights={root / 'test_vit.safetensors'}").error()
    assert "test_vit.safetensors holds no weights of test_vit for 10 classes" in line
    ckpt, _ = trained(cli, "experiment=digits", "model=vit")
    line = cli("eval", f"ckpt={ckpt}", "data=imagenet", f"data.root={root / 'tree'}").error()
    assert "knows 10 classes (0, 1, 2 and 7 more), and not these of data=imagenet: n01440764, " in line
    content = torch.load(ckpt, weights_only=True)
    content["state_dict"]["net.head.bias"][3] = torch.nan
    nan = ckpt.with_name("nan.ckpt")  # a name without a checksum
    torch.save(content, nan)
    assert "vit gives no finite logits for 360 of 360 images" in cli("eval", f"ckpt={nan}").error()


def test_a_part_of_the_classes_is_matched_by_name_and_other_names_are_refused(cli, digits_as_files, tmp_path):
    ckpt, _ = trained(cli, "experiment=digits", "model=vit")
    for label in range(10):
        folders = [f"other/{split}/digit {label}" for split in ("train", "val")]
        for folder in folders + [f"part/val/{label}"] * (label in (3, 7)):
            shutil.copytree(digits_as_files / "val" / str(label), tmp_path / folder)
    _, folder, _, _ = evaluated(cli, f"ckpt={ckpt}")
    whole = np.load(folder / "vit.exact.npz")
    out, folder, _, _ = evaluated(cli, f"ckpt={ckpt}", "data=imagefolder", f"data.root={tmp_path / 'part'}")
    assert f"data=imagefolder: 2 classes, matched by name with the 10 of {ckpt}" in out
    part, same = np.load(folder / "vit.exact.npz"), np.argsort(whole["label"], kind="stable")
    same = same[np.isin(whole["label"][same], (3, 7))]
    assert part["label"].tolist() == whole["label"][same].tolist()
    assert part["top5"].tolist() == whole["top5"][same].tolist()
    root = f"data.root={tmp_path / 'other'}"
    training = ["experiment=digits", "data=imagefolder", "data/loader=torch", root, "recipe.batch_size=8"]
    for line in (
        cli("eval", f"ckpt={ckpt}", "data=imagefolder", root).error(),
        cli("train", *training, f"resume={ckpt}").error(),
    ):
        assert "knows 10 classes (0, 1, 2 and 7 more), and not these of data=imagefolder: digit 0, digit 1" in line


def test_published_weights_are_for_any_of_imagenets_classes(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for name in ("goldfish, Carassius auratus", SYNSETS[7]):
        (tmp_path / "val" / name).mkdir(parents=True)
        Image.new("RGB", (9, 9)).save(tmp_path / "val" / name / "1.png")
    done = cli("eval", "model=timm", "model.name=test_vit", "data=imagefolder", f"data.root={tmp_path}")
    assert "data=imagefolder: 2 classes, matched by name with the 1,000 of test_vit" in done.out
    assert "the weights of test_vit cannot be downloaded" in done.error()
