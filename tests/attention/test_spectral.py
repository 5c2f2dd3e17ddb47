"""Pure InfSA with discounts up to the inverse of the spectral radius."""

import math

import pytest
import torch

from infvit.attention import SpectralInfSA
from infvit.attention.spectral import over_spectral_norm
from tests.attention import naive
from tests.attention.test_attention import assert_equal, layer_and_input


@pytest.mark.parametrize("hops", [1, 3, math.inf])
def test_outputs_and_gradients_equal_the_naive_series(hops):
    layer, x = layer_and_input("spectral_infsa", hops=hops)
    x.requires_grad_()
    assert_equal(layer(x), naive.spectral(layer, x), layer, x)


@pytest.mark.parametrize("logit", [7, 11, 100])
def test_the_series_converges_for_gamma_near_its_upper_end(logit):
    """There the discount of Pure's graph is above 1, and the first 2^30 hops, by squaring, are the solved series."""
    layer, x = layer_and_input("spectral_infsa", N=23)
    with torch.no_grad():
        layer.gamma_logit.fill_(logit)
    V, Ahat = layer.heads(x)[2], layer.weights(x)
    radius = torch.linalg.eigvals(Ahat).abs().amax(-1)
    assert (radius <= 1).all()
    assert (layer.gamma * radius > 0.9).any()
    assert (layer.gamma / torch.linalg.matrix_norm(Ahat) < 1).all()
    assert (layer.gamma[0] * torch.linalg.matrix_norm(Ahat) > 1).all()
    M = layer.gamma[:, None, None] * Ahat
    total, power = M @ V, M
    for _ in range(30):
        total, power = total + power @ total, power @ power
    solved = layer.apply_weights(Ahat, V)
    assert (total - solved).norm() <= 1e-8 * solved.norm()
    finite = SpectralInfSA(32, 4, hops=50).double()
    finite.load_state_dict(layer.state_dict())
    error = torch.linalg.matrix_norm(finite.apply_weights(Ahat, V) - solved)
    assert (error <= finite.truncation_bound(x)).all()


def test_the_norm_bounds_the_spectral_norm_and_removes_the_scale():
    torch.manual_seed(0)
    A = torch.randn(6, 30, 30, dtype=torch.float64).relu()
    A[4] = A[4].triu(1)  # no cycles: the spectral radius is 0
    A[5] = 0
    A.requires_grad_()
    normalised = over_spectral_norm(A)
    norms = torch.linalg.matrix_norm(normalised[:5], 2)
    assert (norms <= 1 + 1e-12).all()
    assert (norms >= 0.95).all()
    assert (normalised[5] == 0).all()
    (gradient,) = torch.autograd.grad((normalised * torch.randn_like(A)).sum(), A)
    assert (gradient * A).sum((1, 2)).abs().max() <= 1e-10 * gradient.norm()  # nothing along the scale of A


def test_any_scale_of_the_tokens_gives_the_same_graph():
    layer, x = layer_and_input("spectral_infsa", qkv_bias=False)
    expected = layer.weights(x)
    for scale in (1e-12, 1e12):
        assert (layer.float().weights((x * scale).float()) - expected).abs().max() <= 1e-5
