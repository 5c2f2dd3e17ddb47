"""Every operator against its naive twin, and the properties that all share."""

import math
import re
from itertools import accumulate

import pytest
import torch

from infvit.attention import ATTENTIONS
from infvit.attention.sums import gathered
from infvit.check import check, checks
from infvit.errors import UsageError
from tests.attention.twins import NARROWEST, SIGNED, TWINS, WITHOUT_WEIGHTS

NAMES = list(ATTENTIONS)

INFSA = [
    ("infsa", {"hops": 1}),
    ("infsa", {"hops": 3}),
    ("infsa", {"hops": math.inf}),
    ("linear_infsa", {}),
    ("linear_infsa", {"chunk": 4}),
    ("kernel_infsa", {}),
    ("kernel_infsa", {"hops": 3, "norm": "spectral"}),
    ("spectral_infsa", {}),
]


def layer_and_input(name, B=2, N=13, D=32, H=4, dtype=torch.float64, seed=0, **options):
    torch.manual_seed(seed)
    layer = ATTENTIONS[name](D, num_heads=H, **options).to(dtype)
    with torch.no_grad():
        for parameter in layer.parameters():  # biases too, and a different gamma per head
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return layer, torch.randn(B, N, D, dtype=dtype)


def gradients(output, layer, x):
    loss = (output * torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)).sum()
    return torch.autograd.grad(loss, [x, *layer.parameters()])


def assert_equal(got, expected, layer, x, x_expected=None, tolerance=1e-10):
    """Equal up to rounding in float64, and the gradients too, relative to the largest."""
    assert (got - expected).abs().max() <= tolerance
    of_expected = gradients(expected, layer, x if x_expected is None else x_expected)
    for g, e in zip(gradients(got, layer, x), of_expected, strict=True):
        assert (g - e).abs().max() <= 100 * tolerance * max(1, e.abs().max())


def peak_bytes(call, *arguments):
    """The most that torch's allocator holds at once during a call, beyond what it held before."""
    with torch.profiler.profile(profile_memory=True) as profile:
        call(*arguments)
    events = profile.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("qkv_bias", [True, False])
@pytest.mark.parametrize("N", [1, 13])
def test_equals_its_naive_twin_in_float64(name, qkv_bias, N):
    layer, x = layer_and_input(name, N=N, qkv_bias=qkv_bias)
    x.requires_grad_()
    assert_equal(layer(x), TWINS[name](layer, x), layer, x)


@pytest.mark.parametrize(
    ("name", "shapes"), [("linear_infsa", [(2, 4, 1 + 8), (2, 4, 1 + 32)]), ("kernel_infsa", [(2, 4, 4, 8, 8)])]
)
def test_sums_of_pieces_add_up_to_the_layer(name, shapes):
    """The sums of three ranks, added as by an all-reduce."""
    layer, x = layer_and_input(name)
    x.requires_grad_()
    pieces = x.split([2, 7, 4], dim=1)
    totals = gathered(layer, lambda before: sum(layer.sums(piece, *before) for piece in pieces))
    assert [total.shape for total in totals] == shapes
    outputs = torch.cat([layer.output(piece, totals).expand_as(piece) for piece in pieces], 1)
    assert_equal(outputs, TWINS[name](layer, x), layer, x)


@pytest.mark.parametrize("name", NAMES)
def test_equals_its_naive_twin_in_float32(name):
    layer, x = layer_and_input(name, N=197, D=64, dtype=torch.float32)
    expected = TWINS[name](layer, x)
    assert (layer(x) - expected).abs().max() <= 1e-5 * max(1, expected.abs().max())


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_WEIGHTS])
def test_the_output_follows_from_the_weights(name):
    layer, x = layer_and_input(name)
    w, V = layer.weights(x), layer.heads(x)[2]
    assert w.ndim == (4 if layer.weighs == "matrix" else 3)
    assert (layer.merge_heads(layer.apply_weights(w, V)) - layer(x)).abs().max() <= 1e-10
    assert (w >= 0).all() or name in SIGNED


@pytest.mark.parametrize(("name", "options"), INFSA, ids=str)
@pytest.mark.usefixtures("path")
def test_a_head_that_is_off_gives_zero_and_a_finite_gradient(name, options):
    layer, x = layer_and_input(name, **options)
    with torch.no_grad():  # K = -Q and equal tokens: every score of every head is negative
        layer.qkv.weight[32:64] = -layer.qkv.weight[:32]
        layer.qkv.bias[32:64] = -layer.qkv.bias[:32]
    x = x[:, :1].expand_as(x).clone().requires_grad_()
    assert (layer.weights(x) == 0).all()
    output = layer(x)
    assert torch.equal(output, layer.proj.bias.expand_as(output))
    assert all(g.isfinite().all() for g in gradients(output, layer, x))


@pytest.mark.parametrize("name", [n for n in NAMES if not ATTENTIONS[n].time.startswith(("O(N²", "O(N³", "0"))])
def test_sums_over_many_tokens_are_accumulated_in_float32(name):
    """Weights near 1 / N at N = 20,000 vanish in bfloat16 sums."""
    layer, _ = layer_and_input(name, D=8, H=1)
    x = torch.randn(1, 20_000, 8, dtype=torch.float64) + 1
    expected = layer(x)
    got = layer.bfloat16()(x.bfloat16())
    assert (got.double() - expected).norm() <= 3e-2 * expected.norm()


VARIANTS = [
    *((name, {}) for name in NAMES),
    *(case for case in INFSA if case[1] not in ({}, {"hops": 1})),
    *((name, {"locality": 3}) for name in ("softmax", "infsa", "linear_infsa", "kernel_infsa", "rala", "xca")),
    ("nystrom", {"kernel_size": 3}),
    *((name, {"qkv_bias": False}) for name in ("infsa", "linear_infsa", "softmax")),
]


@pytest.mark.parametrize(
    ("name", "options", "path"),
    [
        *((*case, "dense") for case in VARIANTS),
        *(pytest.param(*case, "tiles", marks=pytest.mark.slow) for case in VARIANTS if case[0] == "infsa"),
    ],
    ids=str,
    indirect=["path"],
)
def test_no_check_fails(name, options, path, monkeypatch):
    """Shapes, images, masks, NaN, degenerate input, the class token, precision, gradients, FLOPs (`infvit.check`)."""
    monkeypatch.setattr(checks, "EXACT", 1e-10)
    monkeypatch.setattr(checks, "COUNTED", (16, 64))
    if path == "tiles":  # of 5 tokens
        monkeypatch.setattr(checks, "MANY", 26)
    report = check(ATTENTIONS[name], fast=True, **options)
    assert not report.failed, report


@pytest.mark.parametrize("name", [name for name in NAMES if name not in WITHOUT_WEIGHTS])
def test_padding_gets_no_weight(name):
    layer, x = layer_and_input(name, B=3)
    padding = torch.rand(3, 13).argsort(1) >= torch.tensor([[13], [5], [1]])  # anywhere in the sequence
    weights = layer.weights(x.masked_fill(padding[..., None], torch.nan), key_padding_mask=padding)
    assert (weights.movedim(-1, 1)[padding] == 0).all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("content", ["one token", "narrow heads", "nothing but padding"])
def test_corners_have_finite_outputs_and_gradients(name, dtype, content):
    width = NARROWEST.get(name, 1) if content == "narrow heads" else 8
    layer, x = layer_and_input(name, B=1, D=4 * width, dtype=dtype)
    x = x[:, :1] if content == "one token" else x
    x.requires_grad_()
    output = layer(x, torch.ones(1, 13, dtype=torch.bool) if content == "nothing but padding" else None)
    assert output.shape == x.shape
    assert output.isfinite().all() or content == "nothing but padding"
    assert all(g.isfinite().all() for g in gradients(output, layer, x))


@pytest.mark.parametrize(
    ("name", "mask"),
    [(n, m) for n in NAMES for m in ("attn_mask", "is_causal") if m not in ATTENTIONS[n].supported_masks],
)
def test_an_unsupported_mask_is_refused_with_the_reason(name, mask):
    layer, x = layer_and_input(name)
    value = True if mask == "is_causal" else torch.zeros(13, 13, dtype=torch.bool)
    for call in (layer, layer.weights):
        with pytest.raises(UsageError, match=f"cannot honour {mask}: {re.escape(layer.mask_hint)}"):
            call(x, **{mask: value})


@pytest.mark.parametrize("name", [n for n in NAMES if "attn_mask" in ATTENTIONS[n].supported_masks])
@pytest.mark.parametrize("shape", [(13, 13), (2, 13, 13), (2, 4, 13, 13)])
def test_attention_masks_give_weight_0_and_change_only_their_rows(name, shape):
    layer, x = layer_and_input(name)
    hidden = torch.zeros(shape, dtype=torch.bool)
    hidden[..., 3, 5:] = True
    hidden[..., 4, :] = True  # sees no token
    weights, open_weights = layer.weights(x, attn_mask=hidden), layer.weights(x)
    assert (weights[..., 3, 5:] == 0).all()
    assert (weights[..., 4, :] == 0).all()
    assert layer(x, attn_mask=hidden).isfinite().all()
    ratio = (weights / open_weights)[..., :3, :]
    assert (ratio - ratio.nanmean((-2, -1), keepdim=True)).nan_to_num().abs().max() <= 1e-12


@pytest.mark.parametrize("name", [n for n in NAMES if "is_causal" in ATTENTIONS[n].supported_masks])
def test_causality_is_the_mask_of_later_tokens(name):
    layer, x = layer_and_input(name)
    future = torch.ones(13, 13, dtype=torch.bool).triu(1)
    for call in (layer, layer.weights):
        assert (call(x, is_causal=True) - call(x, attn_mask=future)).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_the_class_token_alone_under_autocast(name):
    layer, x = layer_and_input(name, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        alone, of_all = layer.forward_class_token(x), layer(x)[:, :1]
    assert alone.dtype == of_all.dtype
    assert (alone - of_all).norm() <= 2e-2 * of_all.norm()
    with pytest.raises(ValueError, match="x has shape"):
        layer.forward_class_token(x[..., 1:])


@pytest.mark.parametrize("name", NAMES)
def test_the_class_token_alone_calls_a_replaced_or_hooked_projection(name):
    """LoRA replaces `qkv`; NaN detection registers hooks on it."""

    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + x.sin() @ torch.ones(32, self.out_features, dtype=x.dtype)

    layer, x = layer_and_input(name)
    seen = []
    hook = layer.qkv.register_forward_hook(lambda *_: seen.append(True))
    layer.forward_class_token(x)
    hook.remove()
    layer.qkv.__class__ = Adapted
    if name == "linear_infsa":  # multiplies with the weights themselves
        for act in (layer, layer.forward_class_token, layer.weights):
            with pytest.raises(UsageError, match="does something else with them: merge it"):
                act(x)
    else:
        assert seen
        assert (layer.forward_class_token(x) - layer(x)[:, :1]).abs().max() <= 1e-12


@pytest.mark.parametrize("name", NAMES)
def test_dropout_acts_in_training_only(name):
    layer, x = layer_and_input(name, attn_drop=0.5, proj_drop=0.5)
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))
    assert (layer(x) - TWINS[name](layer, x)).abs().max() <= 1e-10


@pytest.mark.parametrize("name", NAMES)
def test_bad_input_is_named(name):
    with pytest.raises(UsageError, match=r"num_heads=5 does not divide dim=32"):
        ATTENTIONS[name](32, num_heads=5)
    layer, x = ATTENTIONS[name](32), torch.zeros(2, 13, 32)
    mistakes = {
        r"x has shape \(2, 13, 31\).*D = 32": {"x": torch.zeros(2, 13, 31)},
        r"x has shape \(13, 32\)": {"x": x[0]},
        r"x has shape \(2, 13, 32\), torch.float64.*expected .*torch.float32": {"x": x.double()},
        r"x has shape \(2, 13, 32\), torch.int64": {"x": x.long()},
        r"x has shape \(2, 13, 32\).*on meta; expected .*on cpu": {"x": x.to("meta")},
        r"key_padding_mask has shape \(13, 2\).*expected \(2, 13\)": {"key_padding_mask": torch.ones(13, 2) > 0},
        r"key_padding_mask has shape \(2, 13\), torch.float32": {"key_padding_mask": torch.ones(2, 13)},
        r"attn_mask has shape \(12, 13\).*expected \(13, 13\) or": {"attn_mask": torch.ones(12, 13) > 0},
    }
    for message, arguments in mistakes.items():
        if not next(iter(arguments)).endswith("mask") or next(iter(arguments)) in layer.supported_masks:
            with pytest.raises(ValueError, match=message):
                layer(**{"x": x, **arguments})


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        *(("infsa", {"hops": hops}, f"hops={hops}") for hops in (0, 1.5, -1, math.nan, -math.inf)),
        ("infsa", {"tolerance": 0}, "tolerance=0"),
        ("infsa", {"hops": math.inf, "attn_drop": 0.1}, r"attn_drop=0\.1 with hops=inf"),
        ("linear_infsa", {"chunk": 0}, "chunk=0"),
        ("linear_infsa", {"chunk": 4, "attn_drop": 0.1}, r"attn_drop=0\.1"),
        ("linear_infsa", {"gamma": 1.0}, r"gamma=1\.0"),
        ("focused_linear", {"power": 0}, "power=0"),
        ("softmax", {"locality": 4}, "locality=4.*odd"),
        ("nystrom", {"kernel_size": 3, "locality": 3}, "kernel_size=3 with locality.*one convolution"),
        ("agent", {"agents": 0}, "agents=0"),
        ("agent", {"agents": 8, "grid": True}, "agents=8, grid=True.*square"),
        ("polaformer", {"power": 0}, "power=0"),
        ("differential", {"lambda_init": 1}, "lambda_init=1"),
        ("differential", {"num_heads": 32}, "num_heads=32 makes heads of 1 of dim=32 channels.*cannot halve"),
        ("mamba2", {"chunk": 0}, "chunk=0"),
        ("nystrom", {"landmarks": 0}, "landmarks=0"),
        ("nystrom", {"kernel_size": 2}, "kernel_size=2.*odd"),
        ("performer", {"num_features": 0}, "num_features=0"),
        ("performer", {"redraw": -1}, "redraw=-1"),
        ("linformer", {"tokens": 0}, "tokens=0"),
        ("linformer", {"tokens": 17, "rank": 18}, "rank=18.*1 to 17"),
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_by_name(name, options, message):
    with pytest.raises(UsageError, match=message):
        ATTENTIONS[name](32, **options)
