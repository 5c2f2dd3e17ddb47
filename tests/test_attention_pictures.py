"""Attention maps, and the picture of them that a run leaves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from callbacks import attention_pictures
from callbacks.attention_pictures import drawn
from infvit.attention import ATTENTIONS
from infvit.errors import UsageError
from infvit.measure.attention.maps import token_map
from infvit.vit import VisionTransformer

QUICK = ["experiment=digits", "data/loader=torch", "recipe.epochs=1", "recipe.warmup_epochs=0"]
QUICK += ["+trainer.limit_train_batches=2"]


def model(attention: str, class_token: bool = True) -> VisionTransformer:
    torch.manual_seed(0)
    size = {"img_size": (8, 12), "patch_size": 2, "dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return VisionTransformer(ATTENTIONS[attention], **size, class_token=class_token).eval()


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("attention", sorted(set(ATTENTIONS) - {"xca", "none"}))
def test_a_map_is_the_class_tokens_row_or_the_mean_of_all_patch_by_patch(attention, class_token):
    net, images = model(attention, class_token), torch.randn(2, 3, 8, 12)
    maps = token_map(net, images, "attention", block=0)
    assert maps.shape == (2, 4, 6)
    weights = net.blocks[0].attn.weights(net.features(images)["blocks.0.norm1"]).detach()
    assert (weights.min() < 0) == (attention in ("hydra", "linformer"))
    for b in range(2):
        expected = torch.zeros(4, 6)
        for row in range(4):
            for column in range(6):
                patch = class_token + 6 * row + column
                for head in weights[b]:
                    if head.ndim == 1:  # one weight for all tokens
                        expected[row, column] += head[patch].abs()
                    elif class_token:
                        expected[row, column] += head[0, patch].abs()
                    else:
                        expected[row, column] += head[:, patch].abs().mean()
        torch.testing.assert_close(maps[b], expected / expected.sum())
    assert not torch.equal(token_map(net, images, "attention"), maps)  # the last block's
    torch.testing.assert_close(token_map(net, images, "attention"), token_map(net, images, "attention", block=1))


def test_heads_that_are_off_give_an_empty_map_and_no_nan():
    net = model("infsa")
    with torch.no_grad():  # q = 1 and k = -1 for every token
        for part, value in ((0, 1.0), (1, -1.0)):
            rows = slice(16 * part, 16 * part + 16)
            net.blocks[1].attn.qkv.weight[rows], net.blocks[1].attn.qkv.bias[rows] = 0, value
    maps = token_map(net, torch.randn(2, 3, 8, 12), "attention")
    assert (maps == 0).all()
    drawn(torch.zeros(2, 3, 8, 12, dtype=torch.uint8)[..., :8], maps)


def test_a_compiled_model_gives_the_same_map():
    net, images = model("infsa"), torch.randn(2, 3, 8, 12)
    maps = token_map(net, images, "attention")
    net.compile(backend="eager")
    net(images)
    torch.testing.assert_close(token_map(net, images, "attention"), maps)


@pytest.mark.parametrize("attention", ["xca", "none"])
def test_an_operator_without_weights_of_tokens_says_so(attention):
    with pytest.raises(UsageError, match="weights of tokens"):
        token_map(model(attention), torch.randn(1, 3, 8, 12), "attention")


def test_a_block_that_is_not_there():
    with pytest.raises(UsageError, match="block=2 is none of the model's 2: expected -2 to 1"):
        token_map(model("softmax"), torch.randn(1, 3, 8, 12), "attention", block=2)


@pytest.mark.parametrize(("size", "side"), [(8, 96), (28, 112), (64, 128), (224, 144)])
def test_the_picture_shows_each_image_and_is_brightest_where_the_map_is_largest(size, side):
    images = torch.zeros(3, 3, size, size, dtype=torch.uint8)
    images[1] = 200
    maps = torch.full((3, 4, 4), 0.01)
    maps[0, 1, 2] = 1.0
    picture = np.asarray(drawn(images, maps).convert("L")).astype(int)
    assert picture.shape == (2 * side + 4, 3 * side + 8)
    assert picture[side // 2, side // 2] < 5
    assert abs(picture[side // 2, side + 4 + side // 2] - 200) < 5
    below = picture[side + 4 :, :side]
    row, column = np.unravel_index(below.argmax(), below.shape)
    assert (4 * row // side, 4 * column // side) == (1, 2)


def test_runs_leave_pictures_of_the_same_images_and_wandb_has_them(cli):
    outcome = cli("train", "-m", *QUICK, "model=vit,linear_infvit,none", "seed=0")
    assert outcome.code == 0, outcome.err
    runs = {json.loads((run / "result.json").read_text())["model"]: run for run in outcome.runs()}
    pictures = {name: run / "attention.png" for name, run in runs.items()}
    assert not pictures.pop("none").exists()
    (said,) = [line for line in outcome.out.splitlines() if line.startswith("no attention picture")]
    assert said.startswith(f"no attention picture of {runs['none'].name}: NoAttention weighs no token")
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
    assert "as their runs said: none" in page


def test_a_whole_model_of_timm_and_a_broken_drawing_leave_a_finished_run(cli, monkeypatch):
    whole = ["model=timm", "model.name=test_vit", "size.image_size=32", "logger=csv"]
    outcome = cli("train", *QUICK, *whole)
    assert outcome.code == 0, outcome.err
    assert "is a whole model, which says nothing of its weights" in outcome.out
    monkeypatch.setattr(attention_pictures, "token_map", lambda *_: 1 / 0)
    outcome = cli("train", *QUICK, "logger=csv", "model=vit")
    assert outcome.code == 0, outcome.err
    assert "ZeroDivisionError" in outcome.out
    monkeypatch.setattr(attention_pictures, "MOST_WEIGHTS", 1000)
    outcome = cli("train", *QUICK, "logger=csv", "model=vit")
    assert outcome.code == 0, outcome.err
    assert "the weights of 17 tokens would take" in outcome.out
    statuses = [json.loads((run / "result.json").read_text())["status"] for run in outcome.runs()]
    assert statuses == ["finished"] * 3
    assert not list(Path(outcome.folder).glob("runs/**/attention.png"))
