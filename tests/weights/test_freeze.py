"""What is not trained, by patterns."""

import pytest
import timm
import torch
from torch import nn

from infvit.attention import LinearInfSA
from infvit.errors import UsageError
from infvit.vit import VisionTransformer
from infvit.weights.freeze import freeze


def model():
    return VisionTransformer(LinearInfSA, img_size=8, patch_size=4, dim=16, depth=3, num_heads=2, num_classes=4)


def trained(net):
    return {name for name, parameter in net.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "frozen"),
    [
        ({"freeze": ["patch_embed"]}, lambda name: name.startswith("patch_embed.")),
        ({"freeze": ["blocks.[0-1]"]}, lambda name: name.startswith(("blocks.0.", "blocks.1."))),
        ({"freeze": ["norm1", "pos_embed"]}, lambda name: ".norm1." in name or name == "pos_embed"),
        ({"train_only": ["head"]}, lambda name: not name.startswith("head.")),
        ({"train_only": ["attn"]}, lambda name: ".attn." not in name),
    ],
    ids=["patch embedding", "blocks", "parts", "linear probe", "all but the attention"],
)
def test_patterns_name_parameters_modules_and_their_ends(patterns, frozen):
    net = model()
    freeze(net, **patterns)
    assert trained(net) == {name for name, _ in net.named_parameters() if not frozen(name)}


def test_frozen_batch_norms_keep_their_statistics():
    net = timm.create_model("resnet18", num_classes=4)
    freeze(net, train_only=["fc"])
    before = {name: buffer.clone() for name, buffer in net.named_buffers()}
    net.train()(torch.randn(4, 3, 32, 32))
    assert all(torch.equal(before[name], buffer) for name, buffer in net.named_buffers())
    assert trained(net) == {"fc.weight", "fc.bias"}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in net.modules())


@pytest.mark.parametrize(
    ("patterns", "message"),
    [
        (
            {"freeze": ["stem"]},
            r"freeze=stem matches no parameter: expected a part of the model, such as .*patch_embed",
        ),
        ({"freeze": ["*"]}, r"freezes all: expected something to train"),
        ({"freeze": ["head"], "train_only": ["head"]}, "expected one of them"),
    ],
)
def test_mistakes_are_one_line(patterns, message):
    with pytest.raises(UsageError, match=message):
        freeze(model(), **patterns)
