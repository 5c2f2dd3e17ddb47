"""KernelInfSA against the N × N series that it never forms; its products in pieces, its corners, its bound."""

import math

import pytest
import torch

from infvit.attention import KernelInfSA
from infvit.attention.kernel_infsa import perron, radius_bound
from tests.attention import naive
from tests.attention.test_attention import assert_equal, gradients, layer_and_input

HOPS = [1, 3, math.inf]


@pytest.mark.parametrize("hops", HOPS)
@pytest.mark.parametrize("features", ["relu", "cubed", "softplus"])
@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
def test_outputs_and_gradients_equal_the_naive_series(hops, features, norm):
    layer, x = layer_and_input("kernel_infsa", hops=hops, features=features, norm=norm)
    x.requires_grad_()
    assert_equal(layer(x), naive.kernel(layer, x), layer, x)


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1e8, 1e30])
def test_float32_of_any_scale_gives_what_float64_gives(scale):
    layer, x = layer_and_input("kernel_infsa")
    expected = layer(x * scale) - layer.proj.bias
    got = (layer.float()((x * scale).float()) - layer.proj.bias).double()
    assert (got - expected).norm() <= 1e-5 * expected.norm() + 1e-7 * layer.proj.bias.norm()


@pytest.mark.slow
def test_precise_over_331_776_tokens():
    layer, _ = layer_and_input("kernel_infsa", D=16, H=2)
    x = torch.randn(1, 331_776, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = layer(x)
        for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
            got = layer.to(dtype)(x.to(dtype)).double()
            assert (got - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("norm", ["frobenius", "spectral"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_a_gamma_learned_to_1_is_finite(dtype, norm):
    """Equal tokens: A has rank one, and ‖Ahat‖_F is its eigenvalue. I − Ahat would be singular but for eps."""
    layer, x = layer_and_input("kernel_infsa", dtype=dtype, norm=norm)
    with torch.no_grad():
        layer.gamma_logit.fill_(100)
        layer.qkv.weight[32:64] = layer.qkv.weight[:32]
    x = (1e3 * x[:, :1]).expand_as(x).clone().requires_grad_()
    assert (layer.gamma == 1).all()
    output = layer(x)
    assert output.isfinite().all()
    assert all(g.isfinite().all() for g in gradients(output, layer, x))


def test_the_truncation_bound_holds_and_is_of_the_size_of_the_error():
    everything, x = layer_and_input("kernel_infsa", hops=math.inf)
    V = everything.heads(x)[2]
    exact = everything.apply_weights(everything.weights(x), V)
    for hops in (1, 2, 5):
        layer = KernelInfSA(32, 4, hops=hops).double()
        layer.load_state_dict(everything.state_dict())
        error = torch.linalg.matrix_norm(layer.apply_weights(layer.weights(x), V) - exact)
        bound = layer.truncation_bound(x)
        assert (error <= bound).all()
        padded = torch.cat((x, torch.full_like(x[:, :2], torch.nan)), 1)
        padding = torch.arange(15).expand(2, -1) >= 13
        torch.testing.assert_close(layer.truncation_bound(padded, key_padding_mask=padding), bound)
        assert (bound <= 100 * error).any()


def test_bounds_and_perron_vectors_of_small_matrices():
    M = torch.rand(5, 7, 7, dtype=torch.float64).pow(8)
    M[1] *= 1e-200
    M[2] = torch.eye(7).roll(1, 0)  # a cycle: λ = 1 is one of seven eigenvalues of this size
    M[3] = M[3].triu(1)  # no cycle: λ = 0
    M[4] = 0
    radius = torch.linalg.eigvals(M).abs().amax(-1)
    for squarings, factor in ((3, 1.4), (10, 1.01)):
        bound = radius_bound(M, squarings)
        assert (bound >= radius * (1 - 1e-12)).all()
        assert (bound[:3] <= factor * radius[:3]).all()
    y = perron(M)
    assert (y >= 0).all()
    scale = M.amax((-2, -1), keepdim=True).clamp_min(1e-300)
    residual = (M / scale) @ y.unsqueeze(-1) - (radius / scale[..., 0, 0])[:, None, None] * y.unsqueeze(-1)
    assert residual.abs().max() <= 1e-6


@pytest.mark.parametrize("option", [{"features": "gelu"}, {"norm": "l1"}, {"hops": 0}], ids=str)
def test_options_out_of_range_are_refused(option):
    ((name, value),) = option.items()
    with pytest.raises(ValueError, match=f"{name}={value!r}"):
        KernelInfSA(32, **option)
