"""The attention pictures that a run leaves, and the health of its heads in its logs."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import attention_maps
from infvit.measure.attention.heat import draw_sheet

QUICK = ["experiment=digits", "data/loader=torch", "recipe.epochs=1", "recipe.warmup_epochs=0"]
QUICK += ["+trainer.limit_train_batches=2"]


@pytest.mark.parametrize(("size", "side"), [(8, 96), (28, 112), (64, 128), (224, 144)])
def test_a_sheet_shows_each_image_and_is_brightest_where_the_map_is_largest(size, side):
    images = torch.zeros(3, 3, size, size, dtype=torch.uint8)
    images[1] = 200
    maps = torch.full((3, 4, 4), 0.01)
    maps[0, 1, 2] = 1.0
    picture = np.asarray(draw_sheet(images, maps).convert("L")).astype(int)
    assert picture.shape == (2 * side + 4, 3 * side + 8)
    assert picture[side // 2, side // 2] < 5
    assert abs(picture[side // 2, side + 4 + side // 2] - 200) < 5
    below = picture[side + 4 :, :side]
    row, column = np.unravel_index(below.argmax(), below.shape)
    assert (4 * row // side, 4 * column // side) == (1, 2)


def test_each_of_several_maps_has_a_row():
    images, maps = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(3, 2, 4, 4)
    for i in range(3):
        maps[i, 1, i, 0] = 0.5
    picture = np.asarray(draw_sheet(images, *maps).convert("L")).astype(int)
    assert picture.shape == (4 * 96 + 3 * 4, 2 * 96 + 4)
    for i in range(3):
        row = picture[(i + 1) * 100 : (i + 1) * 100 + 96]
        assert row[:, :96].max() < 5  # a map of zeros
        assert np.unravel_index(row[:, 100:].argmax(), (96, 96))[0] // 24 == i


@pytest.mark.slow
def test_runs_leave_pictures_of_the_same_images_in_their_folders_and_on_wandb(cli):
    outcome = cli("train", "-m", *QUICK, "model=vit,linear_infvit,none", "seed=0").ok()
    runs = {json.loads((run / "result.json").read_text())["model"]: run for run in outcome.runs()}
    pictures = {name: run / "attention.png" for name, run in runs.items()}
    assert not pictures.pop("none").exists()
    (reported,) = [line for line in outcome.out.splitlines() if line.startswith("no attention picture")]
    assert reported.startswith(
        f"no attention picture of {runs['none'].name}: method='attention' cannot be read from NoAttention"
    )
    tops, belows = set(), set()
    for path in pictures.values():
        pixels = np.asarray(Image.open(path).convert("L")).astype(int)
        assert pixels.shape == (196, 796)
        tops.add((pixels[6:96:12, 6::12] // 64).tobytes())  # colours are rounded to a palette
        belows.add(pixels[100:].tobytes())
        (logged,) = path.parent.glob("wandb/offline-run-*/files/media/images/attention_*.png")
        assert logged.read_bytes().startswith(b"\x89PNG")
    assert len(tops) == 1
    assert len(belows) == 2
    assert not list(runs["none"].glob("wandb/offline-run-*/files/media/images/*"))
    page = next(outcome.folder.glob("runs/digits/*_sweep/comparison.html")).read_text()
    assert page.count("data:image/png;base64,") == 2
    assert "Rows whose runs made no picture: none." in page


@pytest.mark.slow
def test_maps_every_k_epochs_do_not_change_the_weights(cli):
    lasting = ["experiment=digits", "model=linear_infvit", "data/loader=torch", "+trainer.limit_train_batches=2"]
    lasting += ["recipe.epochs=3", "recipe.warmup_epochs=0"]
    for k, logger in ((2, "default"), (0, "csv")):
        every = [f"callbacks.attention_maps.every_n_epochs={k}", f"logger={logger}", f"name=every{k}"]
        outcome = cli("train", *lasting, *every).ok()
    at_end, run = outcome.runs()
    assert [path.name for path in at_end.glob("maps/*")] == ["epoch_0003.png"]
    pictures = sorted(run.glob("maps/*"))
    assert [path.name for path in pictures] == ["epoch_0002.png", "epoch_0003.png"]
    blocks = 4
    for path in pictures:
        assert Image.open(path).size == (796, (blocks + 1) * 100 - 4)
    assert len(list(run.glob("wandb/offline-run-*/files/media/images/maps_*.png"))) == 2
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["dead_heads/0"]]
    assert [row["epoch"] for row in rows] == ["1", "2"]
    for row in rows:
        for block in range(blocks):
            assert 0 <= float(row[f"dead_heads/{block}"]) <= 1
            assert 1 <= float(row[f"effective_tokens/{block}"]) <= 17
            assert 0 < float(row[f"cosine_left/{block}"]) <= 1
    assert rows[0]["effective_tokens/0"] != rows[1]["effective_tokens/0"]
    ours, theirs = (torch.load(path / "checkpoints" / "last.ckpt", weights_only=True) for path in (at_end, run))
    for name, values in ours["state_dict"].items():
        assert torch.equal(values, theirs["state_dict"][name]), name


@pytest.mark.slow
def test_a_model_without_maps_and_a_failing_picture_leave_a_finished_run(cli, monkeypatch):
    timm = ["model=timm", "size.image_size=32", "logger=csv", "callbacks.attention_maps.every_n_epochs=1"]
    outcome = cli("train", *QUICK, *timm, "model.name=test_resnet", "recipe.epochs=2").ok()
    (reported,) = [line for line in outcome.out.splitlines() if line.startswith("no attention picture")]  # once
    assert reported.endswith("expected the VisionTransformer of infvit or of timm")
    monkeypatch.setattr(attention_maps, "layer_maps", lambda *_: 1 / 0)
    outcome = cli("train", *QUICK, "logger=csv", "model=vit").ok()
    assert "ZeroDivisionError" in outcome.out
    monkeypatch.setattr(attention_maps, "MAX_WEIGHTS", 1000)
    outcome = cli("train", *QUICK, "logger=csv", "model=vit").ok()
    assert "the weights of 17 tokens would take" in outcome.out
    statuses = [json.loads((run / "result.json").read_text())["status"] for run in outcome.runs()]
    assert statuses == ["finished"] * 3
    assert not list(Path(outcome.folder).glob("runs/**/attention.png"))
