"""`python eval.py eval=highres` and `eval=predict`, as typed."""

import json
from functools import partial
from typing import get_args

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image

from infvit.attention import SoftmaxAttention
from infvit.errors import UsageError
from infvit.highres.images import write_test_image
from infvit.measure.highres.case import Way, run
from infvit.measure.highres.table import plot, table
from infvit.vit import VisionTransformer
from tests.highres.conftest import small_model

SMALL = ("recipe.epochs=1", "size.depth=2", "recipe.warmup_epochs=0", "logger=csv", "data/loader=torch")


@pytest.mark.slow
def test_one_process_and_two_in_the_table(cli):
    done = cli(
        "eval", "eval=highres", "models=[linear_infvit]", "size=tiny", "resolution=16", "ways=[dense,parallel]"
    ).ok()
    (file,) = done.folder.glob("runs/eval/highres/*/highres.json")
    dense, parallel = json.loads(file.read_text())["rows"]
    for row in (dense, parallel):
        assert (row["status"], row["tokens"]) == ("done", 64)
        assert row["peak"] >= row["resident"] > 0
    assert parallel["difference"] < 1e-5
    # 4 layers of 4 heads of 16, width 64: both sums in float64.
    assert parallel["communicated"] == 4 * 4 * (17 + 65) * 8
    assert "linear_infvit | parallel | 16 × 16" in done.out
    assert not list(file.parent.glob("*.tif"))


@pytest.mark.parametrize("way", ["chunked", "streamed", "parallel", "training"])
def test_another_attention_is_refused_in_every_way_but_the_dense(way, tmp_path):
    write_test_image(tmp_path / "image.tif", 16, 16)
    softmax = partial(VisionTransformer, SoftmaxAttention, img_size=16, patch_size=4, dim=32, depth=1, num_heads=4)
    with pytest.raises(UsageError, match=r"blocks\.0 has SoftmaxAttention, expected .* as LinearInfSA"):
        run(softmax, way, tmp_path / "image.tif", 7, 2)


def test_all_ways_give_the_same_logits(tmp_path):
    write_test_image(tmp_path / "image.tif", 40, 24)
    found = {way: run(small_model, way, tmp_path / "image.tif", 7, 1) for way in get_args(Way) if way != "parallel"}
    for way, case in found.items():
        torch.testing.assert_close(case.logits, found["dense"].logits, rtol=1e-5, atol=1e-5, msg=way)
        assert case.peak >= case.resident > 0


def test_the_picture_needs_two_sizes_and_leaves_out_what_has_no_figure():
    row = {"model": "linear_infvit", "way": "dense", "height": 16, "width": 16, "status": "done", "note": ""}
    row |= {"seconds": 1.0, "peak": 10**9, "resident": 10**8, "difference": None}
    large = row | {"height": 32, "width": 32, "seconds": 4.0, "peak": 2 * 10**9, "difference": 1e-7}
    lost = row | {"model": "vit", "height": 64, "width": 64, "status": "too slow", "note": "stopped after 3 s"}
    lost |= dict.fromkeys(("seconds", "peak", "resident"))
    assert plot([row, lost]) is None
    assert plot([row, large, lost]).startswith(b"\x89PNG")
    text = table([row, large, lost])
    assert "| linear_infvit | dense | 32 × 32 | 4 s | 2.00 GB | 0.10 GB | 1e-07 |" in text
    assert "| vit | dense | 64 × 64 | too slow |" in text
    assert "vit, dense, 64 × 64: stopped after 3 s" in text


@pytest.mark.slow
def test_mistakes_are_reported_before_anything_runs(cli):
    for argument, line in {
        "resolution=41": "use 40 or 42",
        "ways=[thin]": "highres expects 'dense', 'chunked'",
        "image=gone.tif": "gone.tif does not exist",
        "models=[nothing]": "nothing",
    }.items():
        done = cli("eval", "eval=highres", "size=tiny", "resolution=16", argument)
        assert line in done.error()
        assert len(done.err.splitlines()) == 1
    done = cli("eval", "eval=highres", "size=tiny", "resolution=16", "ways=[parallel]", "processes=9")
    assert "9 ranks for 8 rows of patches" in done.err


@pytest.fixture
def checkpoint(cli):
    """A small Linear-InfViT trained for one epoch on the digits."""
    done = cli("train", "experiment=digits", "model=linear_infvit", *SMALL).ok()
    return done.runs()[0] / "checkpoints" / "last.ckpt"


@pytest.mark.slow
def test_images_are_classified_as_the_model_does(cli, checkpoint, tmp_path):
    photographs = tmp_path / "photographs"
    (photographs / "more").mkdir(parents=True)
    pixels = np.random.default_rng(0).integers(0, 256, (14, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(photographs / "a.png")
    Image.fromarray(pixels[:8, :8]).save(photographs / "more" / "a.png")
    (photographs / "notes.txt").write_text("no image")
    done = cli("eval", "eval=predict", f"ckpt={checkpoint}", f"image={photographs}", "centrality=true", "chunk=20").ok()
    (file,) = done.folder.glob("runs/eval/predict/*/predictions.json")
    a, b = json.loads(file.read_text())["images"]
    assert (a["height"], a["width"], b["height"]) == (14, 30, 8)
    assert [len(image["top5"]) for image in (a, b)] == [5, 5]
    assert {found["class"] for found in a["top5"]} <= set("0123456789")
    probabilities = [found["probability"] for found in a["top5"]]
    assert probabilities == sorted(probabilities, reverse=True)
    assert 0.5 < sum(probabilities) <= 1
    assert f"{100 * probabilities[0]:.1f}%" in done.out
    with Image.open(file.parent / "more" / "a.png.centrality.png") as picture:
        assert picture.width == picture.height
    with Image.open(file.parent / "a.png.centrality.png") as picture:
        grey = np.array(picture)
    assert grey.shape[0] >= 512
    assert grey.shape[0] * 15 == grey.shape[1] * 7
    assert grey.max() == 255

    # In chunks or dense, the same; here the dense model by hand.
    from infvit.cli.load_run import ConfigModelSource
    from infvit.highres.tokens import normalise

    network = ConfigModelSource(OmegaConf.create({"data": {"module": {}}, "trust": []})).load(str(checkpoint))
    image = normalise(torch.from_numpy(pixels).permute(2, 0, 1), torch.float32, network.mean, network.std)[None]
    expected = network.model(image).softmax(-1).topk(5).values[0].tolist()
    np.testing.assert_allclose(probabilities, expected, atol=1e-5)


@pytest.mark.slow
def test_sides_that_do_not_fit_are_refused_padded_or_resized(cli, checkpoint, tmp_path):
    Image.fromarray(np.full((15, 9, 3), 90, np.uint8)).save(tmp_path / "odd.png")
    command = ("eval", "eval=predict", f"ckpt={checkpoint}", f"image={tmp_path / 'odd.png'}")
    assert "not a multiple of the patch size 2" in cli(*command).error()
    assert "16 × 10" in cli(*command, "pad=true").out
    assert "8 × 8" in cli(*command, "resize=true").out
    assert "neither a file nor a folder" in cli(*command[:-1], "image=nowhere").err
