"""The backbone: the paper's parameter counts, positions, features, resolutions, timm."""

import math
from functools import partial

import pytest
import timm
import torch
from timm.models.vision_transformer import VisionTransformer as TimmViT
from timm.optim import param_groups_layer_decay
from torch.ao.quantization import quantize_dynamic
from torch.utils.flop_counter import FlopCounterMode

import infvit
from infvit.attention import ATTENTIONS, LinearInfSA, PureInfSA, SoftmaxAttention, pure
from infvit.errors import UsageError
from infvit.highres.stages import blocks_of
from infvit.measure.attention.blocks import backbone
from infvit.measure.cost import FORMULAS, cost
from infvit.positions import normal, sincos
from infvit.vit import VisionTransformer

SMALL = {"img_size": 16, "patch_size": 4, "dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
TIMM = {"img_size": 16, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}
IMAGES = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NAMES = ["vit_4l_patch16_224", "infvit_4l_patch16_224", "linear_infvit_4l_patch16_224", "kernel_infvit_4l_patch16_224"]


def counts(name, **options):
    with torch.device("meta"):
        model = timm.create_model(name, **options)
    parameters = sum(p.numel() for p in model.parameters())
    gammas = sum(p.numel() for n, p in model.named_parameters() if n.endswith("gamma_logit"))
    return parameters - gammas, gammas


def test_parameters_are_the_papers_and_those_published_by_the_documented_option():
    for name in NAMES:
        gammas = 0 if name.startswith("vit") else 4 * 16
        assert counts(name) == (53_451_752, gammas)
        assert counts(name, extra_proj=True) == (57_650_152, gammas)  # "57.7M"
    assert counts("infvit_24l_patch16_224", extra_proj=True) == (330_566_632, 24 * 16)  # "330.6M"
    assert counts("infvit_24l_patch16_224")[0] == 53_451_752 + 20 * 12_596_224


def test_patches_are_embedded_as_by_the_convolution():
    model = VisionTransformer(SoftmaxAttention, **SMALL).double()
    images = torch.randn(2, 3, 8, 24, dtype=torch.float64)
    expected = model.patch_embed.proj(images).flatten(2).mT
    assert torch.allclose(model.patch_embed(images), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_cost_equals_a_count_by_hand(name):
    """1,025 tokens: Pure's tiles are an operator that counts itself. Linear computes only Q, and three sums per head;
    kernel five products of d² per token and head, of which the last block spares one.

    In the last block softmax has one query, Pure one output, and the MLP one token.
    """
    N, D, H = 1025, 1024, 16
    whole = N * (4 * D * D + 2 * N * D)
    mixing, last = {
        NAMES[0]: (whole, N * 2 * D * D + 2 * N * D + 10 * D * D),
        NAMES[1]: (whole, whole - N * D * D),
        NAMES[2]: (N * (D * D + 3 * D * H),) * 2,
        NAMES[3]: (N * (4 * D * D + 5 * D * D // H), N * (3 * D * D + 4 * D * D // H) + D * D),
    }[name]
    rest = (N - 1) * 768 * D + D * D + D * 1000
    with torch.device("meta"):
        got = cost(timm.create_model(name, img_size=512), 512)
    tolerance = 0 if name == NAMES[0] else 2e-3
    assert got.macs_forward == pytest.approx(3 * (mixing + N * 8 * D * D) + last + rest, rel=tolerance)
    assert got.flops_forward == 2 * got.macs_forward
    assert name != NAMES[0] or 2.9 * got.flops_forward < got.flops_training < 3 * got.flops_forward


@pytest.mark.parametrize("attention", ATTENTIONS.values())
def test_the_class_token_alone_after_the_last_attention_equals_the_whole_model(attention):
    """The same logits and gradients as with every token computed to the end."""
    model = VisionTransformer(attention, **SMALL, extra_proj=True).double().eval()
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)

    def gradients(logits):
        found = torch.autograd.grad(logits.square().sum(), list(model.parameters()), allow_unused=True)
        return [torch.zeros(()) if g is None else g for g in found]

    short, whole = model(images), model.forward_head(model.forward_features(images))
    torch.testing.assert_close(short, whole, rtol=1e-9, atol=1e-12)
    for ours, theirs in zip(gradients(short), gradients(whole), strict=True):
        torch.testing.assert_close(ours.expand_as(theirs), theirs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_the_last_layer_costs_no_more_than_its_class_token_needs(name):
    """Saved for every token but one: the MLP, the output, and the query (of XCA and no attention the value)."""
    N, D = 65, 64
    with torch.device("meta"):
        model = VisionTransformer(ATTENTIONS[name], img_size=32, patch_size=4, dim=D, depth=1, num_heads=4).eval()
        softmax = VisionTransformer(SoftmaxAttention, img_size=32, patch_size=4, dim=D, depth=1, num_heads=4)
        images = torch.empty(1, 3, 32, 32)
    with FlopCounterMode(display=False, custom_mapping=FORMULAS) as whole:
        model.forward_head(model.forward_features(images))
    got = cost(model, 32)
    spared = {"linear_infsa": 8, "infsa": 9, "kernel_infsa": 9, "spectral_infsa": 9, "nystrom": 9, "agent": 9}
    least = spared.get(name, 10) * 2 * (N - 1) * D * D
    assert whole.get_total_flops() - got.flops_forward >= least
    if name in ("relu", "softmax_unfused"):  # the same products
        assert got.flops_forward == cost(softmax, 32).flops_forward


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("agent", 0),
        ("inline", 0),
        ("infsa", 4),
        ("spectral_infsa", 4 + 4),
        ("taylorshift", 4),
        ("differential", 4 * 4 + 8),
        ("rala", 32 * 33),
        ("mila", 32 * 33),
        ("polaformer", 32 * 33 + 32),
        ("mamba2", 32 * 33 + 8 * 32 + 8 + 8 + 4 + 32),
    ],
)
def test_parameters_beyond_q_k_v_o_are_counted(name, more):
    """Gates, exponents, temperatures, norms, steps; of heads of 8 channels, in each of 2 blocks."""
    plain, other = (cost(VisionTransformer(ATTENTIONS[each], **SMALL), 16).parameters for each in ("softmax", name))
    assert other == plain + 2 * more


def test_infinite_hops_cost_a_linear_system_and_are_unknown_if_iterated(monkeypatch):
    N, D, H = 16, 32, 4
    options = {**SMALL, "depth": 1, "class_token": False}
    with torch.device("meta"):
        one, every = (VisionTransformer(partial(PureInfSA, hops=hops), **options) for hops in (1, math.inf))
    triangles, product = 2 * N**3 // 3 * H, 2 * N * N * D
    more = cost(every, 16).flops_forward - cost(one, 16).flops_forward
    assert more == triangles + product
    # Backward: the transposed system, factored already, and the gradient of its matrix.
    assert cost(every, 16).flops_training - cost(one, 16).flops_training == more + 2 * product
    monkeypatch.setattr(pure, "DENSE_TOKENS", 0)
    got = cost(every, 16)
    assert (got.macs_forward, got.flops_forward, got.flops_training) == (None, None, None)
    assert got.parameters == cost(one, 16).parameters
    assert cost(one, 16).flops_forward > 0


@pytest.mark.parametrize("attention", ATTENTIONS.values())
@pytest.mark.parametrize("class_token", [True, False])
def test_any_resolution_and_pooling(attention, class_token):
    model = VisionTransformer(attention, **SMALL, class_token=class_token).eval()
    assert model(torch.randn(3, 3, 16, 16)).shape == (3, 7)
    assert model(torch.randn(1, 3, 24, 8)).shape == (1, 7)


def test_positions_start_at_full_scale_and_are_learned():
    model = VisionTransformer(LinearInfSA, **SMALL)
    assert isinstance(model.pos_embed, torch.nn.Parameter)
    patches = model.pos_embed[0, 1:]
    assert torch.equal(patches, sincos((4, 4), 32))
    assert patches.detach().abs().max().item() == pytest.approx(1, abs=1e-3)
    assert (model.pos_embed[0, 0] == 0).all()
    fixed = VisionTransformer(LinearInfSA, **SMALL, learn_positions=False)
    assert "pos_embed" not in dict(fixed.named_parameters())
    assert normal((30, 30), 64, std=0.5).std().item() == pytest.approx(0.5, rel=0.05)


def test_features_are_the_forward_pass():
    model = VisionTransformer(PureInfSA, **SMALL).eval()
    images = torch.randn(2, 3, 16, 16)
    named = model.features(images)
    torch.testing.assert_close(named["logits"], model(images), rtol=1e-5, atol=1e-6)
    assert torch.equal(named["blocks.1.+attn"], named["blocks.0.+mlp"] + named["blocks.1.attn"])
    assert torch.equal(model.blocks[1].attn(named["blocks.1.norm1"]), named["blocks.1.attn"])
    assert list(named)[:3] == ["embed", "blocks.0.norm1", "blocks.0.attn"]


def test_equal_seeds_give_all_attentions_equal_shared_weights():
    states = []
    for attention in ATTENTIONS.values():
        torch.manual_seed(3)
        states.append(VisionTransformer(attention, **SMALL).state_dict())
    for name, value in states[0].items():
        assert all(torch.equal(value, state[name]) for state in states[1:]), name


def test_stochastic_depth_skips_branches_in_training_only():
    model = VisionTransformer(SoftmaxAttention, **SMALL, drop_path_rate=0.5)
    images = torch.randn(8, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_timm_creates_and_adapts_the_models():
    options = {"img_size": 32, "dim": 64, "num_heads": 4}
    script = {"num_classes": 10, "drop_rate": 0.1, "global_pool": "avg"}  # passed by timm's train.py
    model = timm.create_model("linear_infvit_4l_patch16_224", **script, **options)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    assert model.pre_logits.drop.p == 0.1
    model.reset_classifier(3, "token")
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
    assert "infvit_24l_patch16_224" in timm.list_models("*infvit*")
    assert infvit.VisionTransformer is VisionTransformer
    maps = timm.create_model("infvit_4l_patch16_224", features_only=True, out_indices=[0, -2], **options)
    assert (maps.feature_info.channels(), maps.feature_info.reduction()) == ([64, 64], [16, 16])
    assert len(maps.model.blocks) == 3
    assert [found.shape for found in maps(torch.zeros(1, 3, 32, 32))] == [(1, 64, 2, 2)] * 2


def after(model, change, *options):
    getattr(model, change)(*options)
    return model(IMAGES)


def gradients(model):
    model.set_grad_checkpointing()
    return torch.autograd.grad(model.train()(IMAGES).square().sum(), list(model.parameters()))


CALLS = {
    "logits": lambda m: m(IMAGES),
    "features": lambda m: m.forward_features(IMAGES),
    "head's input": lambda m: m.forward_head(m.forward_features(IMAGES), pre_logits=True),
    "avg": lambda m: after(m, "reset_classifier", 0, "avg"),
    "max": lambda m: after(m, "reset_classifier", 0, "max"),
    "avgmax": lambda m: after(m, "reset_classifier", 0, "avgmax"),
    "no pooling": lambda m: after(m, "reset_classifier", 0, ""),
    "same pooling": lambda m: after(m, "reset_classifier", 0),
    "every block": lambda m: m.forward_intermediates(IMAGES),
    "some blocks": lambda m: m.forward_intermediates(IMAGES, [0, -1], return_prefix_tokens=True, norm=True),
    "first block": lambda m: m.forward_intermediates(
        IMAGES, [0], stop_early=True, output_fmt="NLC", intermediates_only=True
    ),
    "pruned": lambda m: after(m, "prune_intermediate_layers", [0], True),
    "checkpointing": gradients,
    "quantised": lambda m: quantize_dynamic(m).forward_features(IMAGES),
}


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_what_timm_calls_on_its_vit_does_the_same_here(call):
    ours, theirs = VisionTransformer(SoftmaxAttention, **SMALL, pre_logits=False).eval(), TimmViT(**TIMM).eval()
    theirs.load_state_dict(ours.state_dict())
    torch.testing.assert_close(call(ours), call(theirs), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated", "ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", ATTENTIONS)
@pytest.mark.parametrize("dtype", [torch.qint8, torch.float16], ids=str)
def test_every_attention_is_quantised(name, dtype):
    model = VisionTransformer(ATTENTIONS[name], **SMALL, class_token=False).eval()
    quantised = quantize_dynamic(model, dtype=dtype)
    assert not any(type(module) is torch.nn.Linear for module in quantised.modules())
    expected = model.forward_features(IMAGES)
    error = (quantised.forward_features(IMAGES) - expected).norm() / expected.norm()
    assert 0 < error <= 0.02


def test_pooling_is_the_one_that_was_asked_for_or_refused():
    for class_token, pool in ((False, "token"), (True, "mean")):
        with pytest.raises(UsageError, match=f"global_pool='{pool}'"):
            VisionTransformer(LinearInfSA, **SMALL, class_token=class_token).reset_classifier(3, pool)
    model = VisionTransformer(LinearInfSA, **SMALL, global_pool="avg")
    assert not backbone(model).by_class_token
    with pytest.raises(UsageError, match="global_pool='avg'"):
        blocks_of(model)


def test_layer_decay_groups_parameters_by_depth_as_in_timms_vit():
    ours, theirs = VisionTransformer(SoftmaxAttention, **SMALL), TimmViT(**TIMM)

    def scales(model):
        names = {parameter: name for name, parameter in model.named_parameters()}
        groups = param_groups_layer_decay(model, 0.05, model.no_weight_decay(), layer_decay=0.5)
        return {names[p]: (group["lr_scale"], group["weight_decay"]) for group in groups for p in group["params"]}

    own = scales(ours)
    assert {own.pop(f"pre_logits.fc.{part}")[0] for part in ("weight", "bias")} == {1}
    assert own == scales(theirs)


def test_bad_sizes_name_the_nearest_good_ones():
    with pytest.raises(UsageError, match=r"18 × 18 is not a multiple of the patch size 4: use 16 or 20"):
        VisionTransformer(SoftmaxAttention, **{**SMALL, "img_size": 18})
    model = VisionTransformer(SoftmaxAttention, **SMALL)
    with pytest.raises(UsageError, match="patch size 4"):
        model(torch.zeros(1, 3, 16, 15))
    with pytest.raises(ValueError, match=r"\(1, 4, 16, 16\)"):
        model(torch.zeros(1, 4, 16, 16))
    with pytest.raises(UsageError, match="multiple of 4"):
        VisionTransformer(SoftmaxAttention, **{**SMALL, "dim": 30, "num_heads": 2})
