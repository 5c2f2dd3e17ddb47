"""Weights from elsewhere: they compute the same here, are fitted where sizes differ, and refused otherwise."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from infvit.attention import LinearInfSA, SoftmaxAttention
from infvit.errors import UsageError
from infvit.vit import VisionTransformer
from infvit.weights import begin_from
from infvit.weights.fit import fit

TEN = [f"class {i}" for i in range(10)]


def timm_vit(side=32, channels=3, classes=10, patch=8, name="vit_tiny_patch16_224"):
    size = {"img_size": side, "patch_size": patch, "depth": 2}
    torch.manual_seed(0)
    net = timm.create_model(name, **size, in_chans=channels, num_classes=classes).eval()
    for parameter in net.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return net


def ours(attention=SoftmaxAttention, side=32, channels=3, classes=10, patch=8, **options):
    size = {"img_size": side, "patch_size": patch, "dim": 192, "depth": 2, "num_heads": 3}
    torch.manual_seed(1)
    net = VisionTransformer(attention, **size, in_chans=channels, num_classes=classes, pre_logits=False, **options)
    return net.eval()


@pytest.mark.parametrize("wrap", ["plain", "model", "module."])
def test_a_vision_transformer_of_timm_gives_the_same_logits_here(wrap, tmp_path):
    theirs, net = timm_vit(), ours()
    state = {("module." if wrap == "module." else "") + name: w for name, w in theirs.state_dict().items()}
    torch.save({"model": state} if wrap == "model" else state, tmp_path / "weights.pth")
    report = begin_from(net, str(tmp_path / "weights.pth"), TEN)
    assert len(report.taken) == len(net.state_dict())
    assert not report.resampled + report.new + report.left_over
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert (net(images) - theirs(images)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    ("here", "fitted"),
    [
        ({"side": 48}, ["pos_embed"]),
        ({"patch": 4}, ["pos_embed", "patch_embed.proj.weight"]),
        ({"channels": 1}, ["patch_embed.proj.weight"]),
    ],
    ids=["larger images", "smaller patches", "grey images"],
)
def test_positions_patches_and_channels_are_fitted_as_timm_fits_them(here, fitted, tmp_path):
    theirs = timm_vit()
    save_file(theirs.state_dict(), tmp_path / "weights.safetensors")
    as_timm = {"img_size": here.get("side", 32), "patch_size": here.get("patch", 8), "depth": 2, "num_classes": 10}
    overlay = {"file": str(tmp_path / "weights.safetensors"), "num_classes": 10, "first_conv": "patch_embed.proj"}
    expected = timm.create_model(
        "vit_tiny_patch16_224",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        in_chans=here.get("channels", 3),
        **as_timm,
    ).state_dict()
    net = ours(**here)
    report = begin_from(net, str(tmp_path / "weights.safetensors"), TEN)
    assert {words.split()[0] for words in report.resampled} == set(fitted)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_a_distilled_model_leaves_its_second_token_and_head_over():
    theirs, net = timm_vit(name="deit_tiny_distilled_patch16_224").state_dict(), ours(side=48)
    fitted, report = fit(theirs, net)
    assert {"dist_token", "head_dist.weight", "head_dist.bias"} == set(report.left_over)
    assert torch.equal(fitted["pos_embed"][:, 0], theirs["pos_embed"][:, 0])
    assert fitted["pos_embed"].shape == net.pos_embed.shape


def test_a_head_for_other_classes_is_new_and_what_the_model_lacks_is_named():
    theirs, net = timm_vit().state_dict(), ours(LinearInfSA)
    before = net.head.weight.clone()
    fitted, report = fit(theirs | {"blocks.2.norm1.weight": torch.ones(192)}, net, same_classes=False)
    net.load_state_dict(fitted, strict=False)
    assert torch.equal(net.head.weight, before)
    assert not torch.equal(before, theirs["head.weight"])
    assert {"head.weight", "head.bias", "blocks.0.attn.gamma_logit"} <= set(report.new)
    assert report.left_over == ["blocks.2.norm1.weight"]
    assert "blocks.*.attn.gamma_logit (2)" in str(report)
    _, report = fit(theirs, ours(classes=7))
    assert "head.weight (there 10 × 192, here 7 × 192)" in report.new


def half(state):
    return {name: tensor for name, tensor in state.items() if "blocks.1" in name}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: timm.create_model("resnet18").state_dict(), r"0% of the model's parameters.*same architecture"),
        (lambda: half(timm_vit().state_dict()), r"4\d% of the model's parameters"),
        (
            lambda: timm.create_model("vit_small_patch16_224", depth=2).state_dict(),
            r"0% .*there 384.*, here 192",
        ),
    ],
    ids=["another architecture", "half of it", "another width"],
)
def test_weights_that_would_leave_the_backbone_as_it_is_are_refused(make, message, tmp_path):
    save_file(make(), tmp_path / "weights.safetensors")
    with pytest.raises(UsageError, match=rf"init=.*weights.safetensors: {message}"):
        begin_from(ours(), str(tmp_path / "weights.safetensors"), TEN)


def test_what_cannot_be_read_is_one_line(tmp_path):
    (tmp_path / "a.safetensors").write_bytes(b"nothing")
    (tmp_path / "a.pth").write_bytes(b"nothing")
    (tmp_path / "empty").mkdir()
    for init, message in {
        "a.safetensors": r"cannot be read as weights",
        "a.pth": r"cannot be read as weights",
        "empty": r"a folder without weights: expected one with checkpoints/last.ckpt",
        "a.*": r"matches 2, .*a.pth, .*a.safetensors: expected a pattern that matches one",
        "nowhere.pth": r"does not exist: expected a run's folder",
    }.items():
        with pytest.raises(UsageError, match=message):
            begin_from(ours(), str(tmp_path / init), TEN)


def test_a_model_saved_to_a_folder_begins_another_one(tmp_path):
    saved, net = ours(), ours(LinearInfSA)
    torch.nn.init.normal_(saved.head.weight)
    saved.save_pretrained(tmp_path)
    begin_from(net, str(tmp_path), TEN)
    for name, tensor in saved.state_dict().items():
        assert torch.equal(net.state_dict()[name], tensor)
