"""Each check fails on an attention that lacks what it is about; the page and its exit code."""

import re

import pytest
import torch

from infvit.check import check, scaling
from infvit.check.__main__ import main
from infvit.errors import UsageError
from tests.check.plain import Mixing, OnTheDevice, Plain, Wide


def odd(forward, **members):
    """A class whose forward is `forward(layer, x, ...)`."""
    return type("Odd", (Plain,), {"forward": forward, **members})


def padding_times_zero(layer, x, key_padding_mask=None):
    y = layer.linear(x) if key_padding_mask is None else layer.linear(x) * ~key_padding_mask[..., None]
    return y + y.sum(1, keepdim=True)


def shown_where_true(layer, x, attn_mask=None):
    weights = x.new_ones(x.shape[1], x.shape[1]) if attn_mask is None else attn_mask.to(x.dtype)
    return weights @ layer.linear(x)


def refused(layer, x, key_padding_mask=None):
    if key_padding_mask is not None:
        raise UsageError("no padding here")
    return layer.linear(x)


FAILS = [
    ("shapes", r"Wide returns \(1, 1, 64\), torch.float32", Wide),
    ("shapes", "Odd returns .* torch.float64", odd(lambda m, x: m.linear(x).double())),
    ("shapes", "Odd returns a tuple", odd(lambda m, x: (m.linear(x), None))),
    ("images", "mixes the images of a batch by", Mixing),
    ("token order", "claims", odd(lambda m, x: m.linear(x).cumsum(1), permutation_equivariant=True)),
    ("key_padding_mask", "of 7.0 changes", odd(lambda m, x, key_padding_mask=None: m.linear(x).cumsum(1))),  # noqa: ARG005
    ("key_padding_mask", "of nan changes", odd(padding_times_zero)),
    ("attn_mask", "True, as in nn.MultiheadAttention", odd(shown_where_true)),
    ("is_causal", "later tokens change", odd(lambda m, x, is_causal=False: m.linear(x) + x.mean(1, keepdim=True))),  # noqa: ARG005
    ("NaN", "changes the others", odd(lambda m, x: m.linear(x) / x.abs().max())),
    ("NaN", "NaN disappears", odd(lambda m, x: m.linear(x.nan_to_num()))),
    ("degenerate", "zeros give NaN", odd(lambda m, x: m.linear(x / x.norm(dim=-1, keepdim=True)))),
    (
        "class token",
        "the class token alone differs",
        type("Odd", (Plain,), {"forward_class_token": lambda _, x: x[:, :1]}),
    ),
    ("bfloat16", "error", odd(lambda m, x: m.linear(x) + 1000 - 1000)),
    ("autocast float16", "dtype", odd(lambda m, x: torch.lerp(x, m.linear(x), 0.5))),
    ("gradients", "Jacobian", odd(lambda m, x: m.linear(x.detach()) + 0 * x)),
    ("FLOPs", "counted at 256 tokens", odd(Plain.forward, flops=lambda *_: 1)),
    ("FLOPs", "counts none", odd(lambda m, x: x * m.linear.weight.sum())),
]
FACTS = [
    ("FLOPs", "a dash in tables: it fails on the meta device (RuntimeError: ", OnTheDevice),
    ("key_padding_mask", "no padding here", odd(refused)),
    ("attn_mask", "not claimed", Plain),
    ("token order", "equivariant", Plain),
    ("class token", "left out", Plain),
]


@pytest.mark.parametrize(
    ("name", "words", "attention", "status"),
    [*((*case, "FAILED") for case in FAILS), *((name, re.escape(words), a, "–") for name, words, a in FACTS)],
)
def test_what_a_check_finds(name, words, attention, status):
    report = check(attention, fast=True)
    (line,) = [line for line in report.lines if line.name == name]
    assert line.status == status
    assert re.search(words, line.found), line.found
    assert (line in report.failed) == (status == "FAILED")


@pytest.mark.slow
def test_the_page_has_the_compiler_and_exponents_in_80_columns(monkeypatch):
    monkeypatch.setattr(scaling, "SIZES", (16, 64))
    report = check(odd(lambda m, x: m.linear(x) * (1 if x.sum().item() > 0 else 1.5)))
    lines = str(report).splitlines()
    assert max(map(len, lines)) <= 80
    assert any("breaks the graph" in line for line in lines)
    assert [line.split()[0] for line in lines[-5:-2]] == ["Odd", "softmax", "linear_infsa"]
    assert "checks failed" in lines[-1]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (
            ["softmax_unfused", "--fast", "dim=8", "num_heads=2"],
            0,
            "UnfusedSoftmaxAttention(8, num_heads=2), 288",
        ),
        (["tests.check.plain.Mixing", "--fast"], 1, "checks failed"),
        (["nothing"], 2, "attention='nothing' is not one of agent"),
        (["nothing.Mine"], 2, "nothing.Mine cannot be imported (ModuleNotFoundError: No module named 'nothing')"),
        (["softmax", "window=8"], 2, "unexpected keyword argument 'window'"),
        (["softmax", "num_heads=5"], 2, "num_heads=5 does not divide"),
        (["--template", "."], 2, "give the name of a new folder"),
    ],
    ids=str,
)
def test_the_command(arguments, code, words, capsys):
    assert main(arguments) == code
    printed = capsys.readouterr()
    assert words in (printed.err if code == 2 else printed.out)
    assert len(printed.err.splitlines()) == (code == 2)
