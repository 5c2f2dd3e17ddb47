"""Whole models of timm train under the same recipe, and their rows describe them."""

import json

import pytest
import torch
from torch import nn

from infvit.attention import SoftmaxAttention
from infvit.errors import UsageError
from infvit.measure.cost import cost
from infvit.measure.shape import Shape, shape
from infvit.timm_models import timm_model
from infvit.vit import VisionTransformer

SHAPES = {
    "deit_tiny_patch16_224": (12, 192, 3, 16),
    "deit_small_patch16_224": (12, 384, 6, 16),
    "deit_base_patch16_224": (12, 768, 12, 16),
    "swin_tiny_patch4_window7_224": (12, 768, None, 4),
    "convnext_tiny": (18, 768, None, None),
    "xcit_small_12_p16_224": (12, 384, 8, 16),
    "efficientnet_b0": (16, 1280, None, None),
    "resnet18": (None, 512, None, None),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_a_model_is_made_for_the_classes_images_and_stochastic_depth_of_the_recipe(name):
    with torch.device("meta"):
        net = timm_model(name, num_classes=10, img_size=64, drop_path_rate=0.2)
        assert net(torch.empty(2, 3, 64, 64)).shape == (2, 10)
    assert shape(net) == Shape(*SHAPES[name])
    rates = [m.drop_prob for m in net.modules() if type(m).__name__ == "DropPath"]
    assert max(rates) == pytest.approx(0.2, rel=0.2)


def test_shape_of_our_backbone():
    net = VisionTransformer(SoftmaxAttention, img_size=8, patch_size=2, dim=32, depth=3, num_heads=4)
    assert shape(net) == Shape(3, 32, 4, 2)


def test_a_model_without_stochastic_depth_warns():
    with pytest.warns(UserWarning, match="vgg11 has no stochastic depth"), torch.device("meta"):
        timm_model("vgg11", 10, 32, 0.1)


@pytest.mark.parametrize(
    ("name", "size", "options", "message"),
    [
        ("deit_tiny", 224, {}, r"model.name=deit_tiny is not a model of timm.*deit_tiny_patch16_224"),
        ("convnxt_tiny", 224, {}, r"convnxt_tiny is not a model.*convnext_tiny"),
        ("convnext_tiny", 8, {}, r"convnext_tiny cannot take images of 8 pixels.*size.image_size"),
        ("xcit_small_12_p16_224", 8, {}, r"xcit_small_12_p16_224 cannot be made.*'img_size': 8"),
        ("test_vit", 32, {"wings": 2}, "takes no option wings"),
    ],
    ids=["unknown", "misspelt", "size of a convolutional model", "size of an attention model", "option"],
)
def test_mistakes_are_reported(name, size, options, message):
    with torch.device("meta"), pytest.raises(UsageError, match=message):
        timm_model(name, 10, size, **options)


def test_training_flops_of_a_grouped_convolution_are_counted_by_group():
    """3 × 3 over 8 × 8 places, 16 channels in 4 groups: forward once, backward for the weight and for the input."""
    net = nn.Sequential(
        nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.Flatten(), nn.Linear(1024, 2)
    )
    first, grouped, head = 2 * 64 * 16 * 3, 2 * 64 * 16 * 4 * 9, 2 * 1024 * 2
    counted = cost(net, 8)
    assert counted.flops_forward == first + grouped + head
    assert counted.flops_training == 2 * first + 3 * grouped + 3 * head


@pytest.mark.slow
@pytest.mark.parametrize(("name", "depth"), [("test_vit", 6), ("test_convnext", 9)])
def test_a_model_of_timm_trains_and_its_row_is_its_own(cli, name, depth):
    quick = ["recipe.epochs=1", "recipe.warmup_epochs=0", "+trainer.limit_train_batches=2", "logger=csv"]
    whole = ["model=timm", f"model.name={name}", "size.image_size=32"]
    outcome = cli("train", "experiment=digits", "data/loader=torch", *quick, *whole).ok()
    (folder,) = outcome.runs()
    row = json.loads((folder / "result.json").read_text())
    assert row["status"] == "finished"
    assert (row["model"], row["attention"], row["depth"], row["dim"]) == (name, name, depth, 64)
    assert row["variant"] == "recipe.epochs=1 recipe.warmup_epochs=0 size.image_size=32 trainer.limit_train_batches=2"
    assert f"{name}: {depth} layers" in outcome.out
    assert cli("eval", f"ckpt={folder / 'checkpoints' / 'last.ckpt'}").code == 0


def test_an_unknown_model_is_one_line_and_its_row_has_no_shape(cli):
    outcome = cli("train", "experiment=digits", "data/loader=torch", "logger=csv", "model=timm", "model.name=deit_tiny")
    assert outcome.error().startswith("error: model.name=deit_tiny is not a model of timm")
    row = json.loads((outcome.runs()[0] / "result.json").read_text())
    assert (row["status"], row["model"], row["depth"], row["heads"]) == ("failed", "deit_tiny", None, None)
