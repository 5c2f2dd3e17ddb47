"""Baselines beyond the formula: corner cases, seeds, compilation, agreement with published implementations."""

from itertools import pairwise

import pytest
import torch
from timm.layers.diff_attention import DiffAttention
from timm.models.efficientvit_mit import LiteMLA
from timm.models.xcit import XCA
from torch.nn import functional as F
from transformers import NystromformerConfig
from transformers.models.mamba2.modeling_mamba2 import mamba2_chunk_scan
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from infvit.attention import (
    BidirectionalMamba2,
    CrossCovarianceAttention,
    LinformerAttention,
    MILAttention,
    NystromAttention,
    PerformerAttention,
    PolaFormerAttention,
    RALAttention,
    ReLULinearAttention,
)
from infvit.attention.mamba2 import scan
from infvit.errors import UsageError
from infvit.vit import VisionTransformer
from tests.attention.naive_baselines import TWINS
from tests.attention.test_attention import assert_equal, gradients, layer_and_input

NAMES = list(TWINS)


@pytest.fixture
def compiler():
    """Resets torch's count of compilations of `Attention.forward`, which all operators share."""
    torch._dynamo.reset()


def test_relu_attention_gives_each_token_what_its_visible_tokens_alone_would():
    layer, x = layer_and_input("relu")
    causal = layer(x, is_causal=True)
    for i in range(13):
        assert (causal[:, i] - layer(x[:, : i + 1])[:, i]).abs().max() <= 1e-10
    blind = layer(x, attn_mask=torch.ones(13, 13, dtype=torch.bool))
    assert torch.equal(blind, layer.proj.bias.expand_as(blind))


@pytest.mark.parametrize("name", ["relu_linear", "focused_linear", "cosformer"])
def test_a_head_without_positive_queries_gives_zero(name):
    layer, x = layer_and_input(name)
    with torch.no_grad():
        layer.qkv.weight[:32] = 0
        layer.qkv.bias[:32] = -1
    x.requires_grad_()
    output = layer(x)
    assert torch.equal(output, layer.proj.bias.expand_as(output))
    assert all(g.isfinite().all() for g in gradients(output, layer, x))


@pytest.mark.parametrize("name", ["xca", "none"])
def test_operators_without_weights_name_the_alternative(name):
    layer, x = layer_and_input(name)
    with pytest.raises(UsageError, match=r"has no weights between tokens: use its output `layer\(x\)`"):
        layer.weights(x)


def test_xca_equals_timms():
    theirs = XCA(32, num_heads=4, qkv_bias=True).double()
    ours = CrossCovarianceAttention(32, num_heads=4).double()
    theirs.temperature.data = torch.rand(4, 1, 1, dtype=torch.float64) + 0.5
    ours.load_state_dict({**theirs.state_dict(), "temperature": theirs.temperature.flatten()})
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    assert (ours(x) - theirs(x)).abs().max() <= 1e-10


def test_relu_linear_is_the_attention_of_timms_efficientvit():
    layer, x = layer_and_input("relu_linear")
    theirs = LiteMLA(32, 32, heads=4, dim=8, scales=(), eps=1e-9)
    Q, K, V = layer.heads(x)
    expected = theirs._attn(Q.relu(), K.relu(), F.pad(V, (0, 1), value=1.0))
    assert (layer(x) - layer.merge_heads(expected)).abs().max() <= 1e-5  # theirs computes in float32


def test_differential_equals_timms():
    ours, x = layer_and_input("differential")
    theirs = DiffAttention(32, num_heads=4, qkv_bias=True).double()
    theirs.lambda_init = 0.8
    lambdas = dict(zip(("lambda_q1", "lambda_k1", "lambda_q2", "lambda_k2"), ours.lambdas.chunk(4), strict=True))
    shared = {name: value for name, value in ours.state_dict().items() if name.startswith(("qkv", "proj"))}
    theirs.load_state_dict({**shared, **lambdas, "sub_norm.weight": ours.norm_weight})
    assert (ours(x) - theirs(x)).abs().max() <= 1e-6  # their lambda is in float32


@pytest.mark.parametrize("padded", [False, True])
def test_both_forms_of_taylorshift_are_the_same_function(padded):
    """The linear one is taken above d² + d + 1 = 73 tokens."""
    layer, x = layer_and_input("taylorshift", N=80)
    padding = (torch.rand(2, 80) < 0.1) if padded else None
    x.requires_grad_()
    found = layer(x, padding)
    assert_equal(found, layer.merge_heads(layer.weights(x, key_padding_mask=padding) @ layer.heads(x)[2]), layer, x)
    assert padded or (found - TWINS["taylorshift"](layer, x)).abs().max() <= 1e-10


@pytest.mark.parametrize("kernel_size", [0, 5])
def test_nystrom_is_the_attention_of_transformers(kernel_size):
    config = NystromformerConfig(
        hidden_size=32,
        num_attention_heads=4,
        num_landmarks=4,
        segment_means_seq_len=12,
        conv_kernel_size=kernel_size or 1,
        attention_probs_dropout_prob=0.0,
    )
    theirs = NystromformerSelfAttention(config)
    theirs.init_option = "exact"  # the norm of each head, as in the paper, not the largest of the batch
    ours, x = layer_and_input("nystrom", N=12, landmarks=4, kernel_size=kernel_size, dtype=torch.float32)
    with torch.no_grad():
        for i, part in enumerate((theirs.query, theirs.key, theirs.value)):
            part.weight.copy_(ours.qkv.weight[32 * i : 32 * (i + 1)])
            part.bias.copy_(ours.qkv.bias[32 * i : 32 * (i + 1)])
        theirs.conv.weight.copy_(ours.conv_weight if kernel_size else torch.zeros(4, 1, 1, 1))
    expected = ours.proj(theirs(x)[0])
    assert (ours(x) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize(
    ("operator", "growing", "scale", "error"),
    [
        (NystromAttention, [{"landmarks": 3}, {"landmarks": 12}, {"landmarks": 24, "iterations": 30}], 0.5, 1e-6),
        (PerformerAttention, [{"num_features": m} for m in (8, 128, 8192)], 0.3, 0.1),
    ],
    ids=["nystrom", "performer"],
)
def test_approximations_near_softmax_as_they_grow(operator, growing, scale, error):
    softmax, x = layer_and_input("softmax", N=24)
    softmax.qkv.weight.data.mul_(scale)
    errors = []
    for options in growing:
        layer = operator(32, 4, **options).double()
        layer.load_state_dict(softmax.state_dict(), strict=False)
        errors.append((layer(x) - softmax(x)).norm() / softmax(x).norm())
    assert errors[0] > errors[1] > errors[2]
    assert errors[2] < error


def test_directions_of_performer_are_orthogonal_with_the_lengths_of_normal_vectors():
    torch.manual_seed(0)
    directions = PerformerAttention(32, 4, num_features=8192).projection
    gram = directions[:8] @ directions[:8].T
    assert (gram - gram.diag().diag()).abs().max() < 1e-4
    assert directions.square().sum(1).mean().item() == pytest.approx(8, rel=0.05)


def test_performer_redraws_in_training_only_and_a_resumed_one_draws_the_same():
    layer, x = layer_and_input("performer", redraw=3)
    draws = []
    for step in range(7):
        layer(x)
        draws.append(layer.projection.clone())
        if step == 3:
            saved = {name: value.clone() for name, value in layer.state_dict().items()}
    same = [torch.equal(a, b) for a, b in pairwise(draws)]
    assert same == [True, True, False, True, True, False]
    resumed, _ = layer_and_input("performer", redraw=3, seed=9)
    resumed.load_state_dict(saved)
    for _ in range(3):
        resumed(x)
    assert torch.equal(resumed.projection, draws[-1])
    layer.eval()
    for _ in range(4):
        layer(x)
    assert torch.equal(layer.projection, draws[-1])


@pytest.mark.slow
@pytest.mark.usefixtures("compiler")
def test_performer_redrawn_between_two_passes_has_the_gradients_of_each():
    layer, x = layer_and_input("performer", redraw=1)
    first = layer(x)
    (first + layer(x)).sum().backward()
    assert layer.qkv.weight.grad.isfinite().all()
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    before = layer.projection.clone()
    compiled(x).sum().backward()
    assert not torch.equal(layer.projection, before)


@pytest.mark.parametrize("chunk", [1, 4, 13])
def test_mamba2_in_chunks_is_the_recurrence_also_around_padding(chunk):
    layer, x = layer_and_input("mamba2", chunk=chunk)
    x.requires_grad_()
    assert_equal(layer(x), TWINS["mamba2"](layer, x), layer, x)
    kept = torch.tensor([0, 1, 3, 4, 8, 11])
    padding = torch.ones(2, 13, dtype=torch.bool).index_fill(1, kept, value=False)
    assert (layer(x, padding)[:, kept] - TWINS["mamba2"](layer, x[:, kept])).abs().max() <= 1e-10


def test_each_scan_of_mamba2_is_that_of_transformers():
    torch.manual_seed(0)
    Q, K, V = torch.randn(3, 2, 20, 4, 8)
    delta, rate = torch.rand(2, 20, 4), torch.rand(4) + 0.5
    expected = mamba2_chunk_scan(V, delta, -rate, K, Q, chunk_size=6)
    Q, K, V, delta = (t.transpose(1, 2) for t in (Q, K, V, delta))
    found = scan(Q, K, V, delta, -delta * rate[:, None], chunk=7)
    assert (found.transpose(1, 2) - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_layers_of_one_seed_draw_alike_and_layers_of_one_model_apart():
    first, second = layer_and_input("performer")[0], layer_and_input("performer")[0]
    assert torch.equal(first.projection, second.projection)
    model = VisionTransformer(PerformerAttention, img_size=8, patch_size=4, dim=32, depth=2, num_heads=4)
    assert not torch.equal(model.blocks[0].attn.projection, model.blocks[1].attn.projection)
    E, values = LinformerAttention(32).key_value_projection
    assert not torch.equal(E, values)


def test_linformer_gives_equal_tokens_the_same_at_any_number_of_them():
    layer, x = layer_and_input("linformer", N=1, tokens=13, rank=5)
    assert (layer(x.expand(2, 26, 32))[:, :13] - layer(x.expand(2, 13, 32))).abs().max() <= 1e-10


def test_focused_linear_with_the_filters_of_a_head_for_all_is_the_published_one():
    """A depthwise 5 × 5 convolution of each head's V, as in FLatten's code, is added to the attention."""
    layer, x = layer_and_input("focused_linear", N=17, locality=5)
    published = torch.nn.Conv2d(8, 8, 5, groups=8, padding=2).double()
    layer.locality.load_state_dict({"weight": published.weight.repeat(4, 1, 1, 1), "bias": published.bias.repeat(4)})
    maps = layer.heads(x)[2][:, :, 1:].reshape(8, 4, 4, 8).permute(0, 3, 1, 2)
    added = published(maps).flatten(2).unflatten(0, (2, 4)).mT
    expected = TWINS["focused_linear"](layer, x) + layer.merge_heads(F.pad(added, (0, 0, 1, 0))) - layer.proj.bias
    assert (layer(x) - expected).abs().max() <= 1e-10


@pytest.mark.parametrize("N", [1, 16, 17, 25])
def test_agents_are_windows_of_the_grid_without_the_class_token(N):
    layer, x = layer_and_input("agent", N=N, agents=9, grid=True)
    assert (layer(x) - TWINS["agent"](layer, x)).abs().max() <= 1e-10
    assert (layer.forward_class_token(x) - layer(x)[:, :1]).abs().max() <= 1e-10
    with pytest.raises(UsageError, match=r"13 tokens are not a square grid.*grid=False"):
        layer(x[:, :1].expand(2, 13, 32))
    with pytest.raises(UsageError, match=r"cannot honour key_padding_mask with windows of a grid.*grid=False"):
        layer(x, key_padding_mask=torch.zeros(2, N, dtype=torch.bool))


@pytest.mark.usefixtures("compiler")
def test_nystroms_convolution_refuses_padding_and_leaves_the_seeds_alone():
    layer = NystromAttention(32, kernel_size=3)
    with pytest.raises(UsageError, match=r"cannot honour key_padding_mask with a convolution.*kernel_size=0"):
        layer(torch.zeros(1, 16, 32), key_padding_mask=torch.zeros(1, 16, dtype=torch.bool))
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(1, 16, 32)).shape == (1, 16, 32)
    states = []
    for kind in (NystromAttention, ReLULinearAttention):
        torch.manual_seed(0)
        options = {"kernel_size": 3} if kind is NystromAttention else {}
        states.append(kind(32, **options).state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())


@pytest.mark.parametrize("operator", [BidirectionalMamba2, MILAttention, PolaFormerAttention, RALAttention])
def test_a_gate_leaves_the_seeds_alone_and_is_drawn_from_them(operator):
    states = []
    for kind, seed in ((operator, 0), (ReLULinearAttention, 0), (operator, 1)):
        torch.manual_seed(seed)
        states.append(kind(32).state_dict())
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert not torch.equal(states[0]["gate_weight"], states[2]["gate_weight"])
