"""Models are saved, loaded and exported without a change, and a config can name nothing but known parts."""

import functools
import json

import numpy as np
import pytest
import timm
import torch
from torch import nn

from infvit.attention import ATTENTIONS, LinearInfSA, PureInfSA, SoftmaxAttention
from infvit.errors import UsageError
from infvit.hub import export_onnx
from infvit.positions import normal
from infvit.vit import VisionTransformer

SMALL = {"img_size": 16, "patch_size": 4, "dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def with_options():
    attention = functools.partial(PureInfSA, hops=3, gamma=0.5)
    model = VisionTransformer(attention, **SMALL, positions=functools.partial(normal, std=0.5), class_token=False)
    model.reset_classifier(4, "max")
    return model


MODELS = {name: functools.partial(VisionTransformer, attention, **SMALL) for name, attention in ATTENTIONS.items()}
MODELS |= {
    "options and another head": with_options,
    "locality": functools.partial(VisionTransformer, functools.partial(LinearInfSA, locality=3), **SMALL),
    "timm": lambda: timm.create_model("linear_infvit_4l_patch16_224", img_size=16, dim=32, num_heads=2, depth=1),
}


@pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)
def test_a_saved_model_loads_and_computes_the_same(make, tmp_path):
    model = make().eval()
    model.save_pretrained(tmp_path)
    loaded = VisionTransformer.from_pretrained(tmp_path)
    assert type(loaded.blocks[0].attn) is type(model.blocks[0].attn)
    assert torch.equal(loaded(IMAGES), model(IMAGES))
    assert {p.name for p in tmp_path.iterdir()} == {"README.md", "config.json", "model.safetensors"}
    if make is with_options:
        assert (loaded.blocks[1].attn.hops, loaded.num_prefix_tokens) == (3, 0)
        assert loaded(IMAGES).shape == (3, 4)


def test_an_unnamed_attention_cannot_be_saved(tmp_path):
    class Own(SoftmaxAttention):
        pass

    with pytest.raises(UsageError, match=r"attention=.*Own has no name .* softmax"):
        VisionTransformer(Own, **SMALL).save_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda c: {**c, "attention": {"name": "os.system"}}, r"is not one of .*softmax"),
        (lambda c: {**c, "attention": "linear_infsa"}, r"is not one of .*softmax"),
        (lambda c: {**c, "positions": {"name": "torch.load"}}, r"is not one of .*sincos"),
        (lambda c: {**c, "attention": {"name": "infsa", "hops": 0}}, "hops=0"),
    ],
)
def test_a_config_names_known_parts_only(edit, message, tmp_path):
    VisionTransformer(LinearInfSA, **SMALL).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps(edit(json.loads(config.read_text()))))
    with pytest.raises(UsageError, match=message):
        VisionTransformer.from_pretrained(tmp_path)


def test_weights_that_are_incomplete_missing_or_of_another_model_do_not_load(tmp_path):
    VisionTransformer(LinearInfSA, **SMALL).save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="gamma_logit"):
        VisionTransformer.from_pretrained(tmp_path, attention=SoftmaxAttention)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"model\.safetensors is incomplete"):
        VisionTransformer.from_pretrained(tmp_path)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"model\.safetensors"):
        VisionTransformer.from_pretrained(tmp_path)


class SideBySide(nn.Module):
    """Pixels as tokens by all attentions: (batch, 32, 4, 4) → (batch, attentions, 16, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(attention(32, 4) for attention in ATTENTIONS.values())
        self.layers.append(LinearInfSA(32, 4, locality=3))

    def forward(self, images):
        x = images.flatten(2).mT
        return torch.stack([layer(x) for layer in self.layers], 1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "channels", "side"),
    [(SideBySide, 32, 4), (functools.partial(VisionTransformer, LinearInfSA, **SMALL), 3, 16)],
    ids=["attentions", "model"],
)
def test_onnxruntime_computes_the_same_at_two_batch_sizes(make, channels, side, tmp_path):
    """The attentions in one file without a model for each; class tokens by the model."""
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = make()
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.2)
    export_onnx(model, tmp_path / "model.onnx", side, channels)
    assert model.training
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    for images in torch.randn(6, channels, side, side).split([1, 5]):
        (found,) = session.run(["logits"], {"images": images.numpy()})
        expected = model.eval()(images).detach().numpy()
        for ours, theirs in zip(found.swapaxes(0, 1), expected.swapaxes(0, 1), strict=True):
            assert np.abs(ours - theirs).max() <= 1e-4 * max(1, np.abs(theirs).max())
