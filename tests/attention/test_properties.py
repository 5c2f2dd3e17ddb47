"""Properties for any input: shapes, scales, constant and empty content, NaN in one image."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infvit.attention import ATTENTIONS, LinearInfSA, PureInfSA
from tests.attention.test_attention import gradients
from tests.attention.twins import TWINS

INFSA = {
    "one hop": lambda D, H: PureInfSA(D, H),
    "three hops": lambda D, H: PureInfSA(D, H, hops=3),
    "all hops": lambda D, H: PureInfSA(D, H, hops=math.inf),
    "linear": lambda D, H: LinearInfSA(D, H),
    "linear in chunks": lambda D, H: LinearInfSA(D, H, chunk=3),
}
shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 8]))


def strong(make, D, H, seed):
    """A layer with weights far from 0, biases too, and another gamma for each head."""
    torch.manual_seed(seed)
    layer = make(D, H)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.5)
    return layer


def content(B, N, D, scale, constant):
    x = torch.randn(B, 1, D).expand(B, N, D) if constant else torch.randn(B, N, D)
    return (scale * x).requires_grad_()


@pytest.mark.parametrize("kind", INFSA)
@pytest.mark.usefixtures("path")
@settings(max_examples=40, deadline=None, derandomize=True)
@given(shape=shapes, scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]), constant=st.booleans(), seed=st.integers(0, 99))
def test_infsa_at_any_scale_is_its_float64_twin(kind, shape, scale, constant, seed):
    """In float32, where squares of 1e30 overflow and of 1e-30 vanish."""
    B, N, H, d = shape
    layer = strong(INFSA[kind], H * d, H, seed)
    x = content(B, N, H * d, scale, constant)
    got = layer(x)
    finite = gradients(got, layer, x)
    expected = TWINS["linear_infsa" if "linear" in kind else "infsa"](layer.double(), x.detach().double())
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert all(g.isfinite().all() for g in finite)


@pytest.mark.parametrize("name", ATTENTIONS)
@settings(max_examples=15, deadline=None, derandomize=True)
@given(shape=shapes, scale=st.sampled_from([0.0, 1.0]), constant=st.booleans(), seed=st.integers(0, 99))
def test_every_attention_is_finite_for_any_shape_and_constant_content(name, shape, scale, constant, seed):
    B, N, H, d = shape
    layer = strong(ATTENTIONS[name], H * d, H, seed)
    x = content(B, N, H * d, scale, constant)
    output = layer(x)
    assert output.shape == x.shape
    assert output.isfinite().all()
    used = [p for p in layer.parameters() if p.requires_grad]
    found = torch.autograd.grad(output.square().sum(), [x, *used], allow_unused=True)
    assert all(g is None or g.isfinite().all() for g in found)


@pytest.mark.parametrize("name", ATTENTIONS)
@settings(max_examples=10, deadline=None, derandomize=True)
@given(N=st.integers(1, 9), at=st.integers(0, 2), seed=st.integers(0, 99))
def test_nan_stays_in_its_image(name, N, at, seed):
    layer = strong(ATTENTIONS[name], 16, 4, seed).eval()
    x = torch.randn(3, N, 16)
    clean = layer(x)
    x[at, seed % N, 3] = torch.nan
    output = layer(x)
    others = [i for i in range(3) if i != at]
    assert output[at].isnan().any()
    assert torch.equal(output[others], clean[others])


@pytest.mark.parametrize("kind", INFSA)
@pytest.mark.usefixtures("path")
def test_nan_stays_in_its_image_on_every_path(kind):
    layer = strong(INFSA[kind], 16, 4, 0)
    x = torch.randn(3, 9, 16)
    clean = layer(x)
    x[1, 4, 3] = torch.nan
    output = layer(x)
    assert output[1].isnan().all()
    assert torch.equal(output[[0, 2]], clean[[0, 2]])
