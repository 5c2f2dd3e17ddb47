"""Each check fails on an attention that lacks what it is about; the page and its exit code."""

import re

import pytest
import torch
from torch import nn

from infvit.check import check, scaling
from infvit.check.__main__ import main
from infvit.errors import UsageError


def attention(forward, **members):
    """A class whose forward is `forward(layer, x, ...)`, with a Linear to be trained."""

    def __init__(self, dim, num_heads):  # noqa: N807, ARG001
        nn.Module.__init__(self)
        self.linear = nn.Linear(dim, dim)

    return type("Odd", (nn.Module,), {"__init__": __init__, "forward": forward, **members})


def by_all_images(layer, x):
    return layer.linear(x) + x.mean(0, keepdim=True)


def padding_times_zero(layer, x, key_padding_mask=None):
    y = layer.linear(x)
    if key_padding_mask is not None:
        y = y * ~key_padding_mask[..., None]
    return y + y.sum(1, keepdim=True)


def padding_ignored(layer, x, key_padding_mask=None):  # noqa: ARG001
    return layer.linear(x).cumsum(1)


def shown_where_true(layer, x, attn_mask=None):
    weights = torch.ones(x.shape[1], x.shape[1], dtype=x.dtype) if attn_mask is None else attn_mask.to(x.dtype)
    return weights @ layer.linear(x)


def causal_ignored(layer, x, is_causal=False):  # noqa: ARG001
    return layer.linear(x) + x.sum(1, keepdim=True)


def in_a_graph_break(layer, x):
    return layer.linear(x) * (1 if x.sum().item() > 0 else 1.5)


ODD = {
    "another width": (
        "shapes",
        r"Odd returns \(1, 1, 64\), torch.float32",
        attention(lambda m, x: m.linear(x).repeat(1, 1, 2)),
    ),
    "another dtype": ("shapes", "Odd returns .* torch.float64", attention(lambda m, x: m.linear(x).double())),
    "not a tensor": ("shapes", "Odd returns a tuple", attention(lambda m, x: (m.linear(x), None))),
    "images": ("images", "mixes the images of a batch", attention(by_all_images)),
    "order": (
        "token order",
        "claims permutation_equivariant",
        attention(lambda m, x: m.linear(x).cumsum(1), permutation_equivariant=True),
    ),
    "padding": ("key_padding_mask", "the output .* padding of 7.0", attention(padding_ignored)),
    "NaN in padding": ("key_padding_mask", "the output .* padding of nan", attention(padding_times_zero)),
    "SDPA's mask": ("attn_mask", "True hides", attention(shown_where_true)),
    "causal": ("is_causal", "later tokens change", attention(causal_ignored)),
    "NaN of a batch": ("NaN", "changes the others", attention(lambda m, x: m.linear(x) / x.abs().max())),
    "NaN hidden": ("NaN", "NaN disappears", attention(lambda m, x: m.linear(x.nan_to_num()))),
    "zeros": ("degenerate", "zeros give NaN", attention(lambda m, x: m.linear(x / x.norm(dim=-1, keepdim=True)))),
    "class token": (
        "class token",
        "the output of the class token alone differs",
        attention(
            lambda m, x: m.linear(x) + x.mean(1, keepdim=True), forward_class_token=lambda m, x: m.linear(x[:, :1])
        ),
    ),
    "rounding": ("bfloat16", "error", attention(lambda m, x: m.linear(x) + 1000 - 1000)),
    "autocast": ("autocast bfloat16", "dtype", attention(lambda m, x: torch.lerp(x, m.linear(x), 0.5))),
    "gradient": ("gradients", "Jacobian", attention(lambda m, x: m.linear(x.detach()) + 0 * x)),
    "FLOPs": ("FLOPs", "counted at 256 tokens", attention(lambda m, x: m.linear(x), flops=lambda *_: 1)),
    "no FLOPs": ("FLOPs", "counts none", attention(lambda m, x: x * m.linear.weight.sum())),
}


@pytest.mark.parametrize(("name", "words", "odd"), ODD.values(), ids=ODD)
def test_a_check_fails_on_what_it_is_about(name, words, odd):
    (line,) = [line for line in check(odd, fast=True).lines if line.name == name]
    assert line.status == "FAILED"
    assert re.search(words, line.found), line.found


def test_what_is_neither_right_nor_wrong_is_a_dash():
    def on_the_device(layer, x):
        with torch.autocast(x.device.type, enabled=False):
            return layer.linear(x)

    def refused(layer, x, key_padding_mask=None):
        if key_padding_mask is not None:
            raise UsageError("no padding here")
        return layer.linear(x)

    for name, words, odd in (
        ("meta", "RuntimeError", on_the_device),
        ("FLOPs", "not counted", on_the_device),
        ("key_padding_mask", "no padding here", refused),
        ("attn_mask", "not claimed", refused),
        ("token order", "equivariant", refused),
    ):
        report = check(attention(odd), fast=True)
        (line,) = [line for line in report.lines if line.name == name]
        assert line.status == "–"
        assert words in line.found
        assert not report.failed


@pytest.mark.slow
def test_the_page_has_the_compiler_and_exponents_in_80_columns(monkeypatch):
    monkeypatch.setattr(scaling, "SIZES", (16, 64, 256))
    page = str(report := check(attention(in_a_graph_break)))
    assert max(map(len, page.splitlines())) <= 80
    assert "breaks the graph" in page
    assert "2 of 19 checks failed" in page
    names = [line.split()[0] for line in report.scaling.text().splitlines()[-3:]]
    assert names == ["Odd", "softmax", "linear_infsa"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["softmax_unfused", "--fast", "dim=8", "num_heads=2"], 0, "UnfusedSoftmaxAttention(8, num_heads=2)"),
        (["nothing"], 2, "attention='nothing' is not one of cosformer"),
        (["nothing.Mine"], 2, "nothing.Mine cannot be imported (ModuleNotFoundError: No module named 'nothing')"),
        (["infvit.attention.Mine"], 2, "Mine"),
        (["softmax", "window=8"], 2, "unexpected keyword argument 'window'"),
        (["softmax", "num_heads=5"], 2, "num_heads=5 does not divide"),
        (["--template", "."], 2, "give the name of a new folder"),
    ],
    ids=str,
)
def test_the_command(arguments, code, words, capsys):
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert words in (printed.err if code else printed.out)
    assert not code or len(printed.err.splitlines()) == 1
