"""InfSA: its discount, fixed, learned per layer or per head, and its values at any shape and scale."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infvit.attention import LinearInfSA, PureInfSA
from tests.attention.test_attention import INFSA, gradients, layer_and_input
from tests.attention.twins import TWINS

shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 8]))


@pytest.mark.parametrize("layer", [PureInfSA, LinearInfSA])
@pytest.mark.parametrize("options", [{}, {"gamma_per_head": False}, {"learn_gamma": False}])
def test_discounts_start_equal_and_learn_as_configured(layer, options):
    torch.manual_seed(0)
    x = torch.randn(2, 9, 16)
    assert layer(8, 2).gamma.tolist() == pytest.approx([0.95, 0.95])
    plain, other = layer(16, 4, gamma=0.8), layer(16, 4, gamma=0.8, **options)
    other.load_state_dict({n: v for n, v in plain.state_dict().items() if n != "gamma_logit"}, strict=False)
    out = other(x)
    torch.testing.assert_close(out, plain(x))
    assert other.gamma.shape == (4,)
    assert len(other.gamma_logit) == (1 if options == {"gamma_per_head": False} else 4)
    out.square().sum().backward()
    learned = options != {"learn_gamma": False}
    assert (other.gamma_logit.grad is not None) == learned
    if learned:
        plain(x).square().sum().backward()
        per_head = plain.gamma_logit.grad
        assert (per_head != 0).all()
        expected = per_head.sum(0, keepdim=True) if "gamma_per_head" in options else per_head
        torch.testing.assert_close(other.gamma_logit.grad, expected)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "options"), INFSA, ids=str)
@pytest.mark.usefixtures("path")
@settings(max_examples=25, deadline=None, derandomize=True)
@given(shape=shapes, scale=st.sampled_from([0.0, 1e-30, 1.0, 1e30]), constant=st.booleans(), seed=st.integers(0, 99))
def test_infsa_at_any_scale_is_its_float64_twin(name, options, shape, scale, constant, seed):
    """In float32, where squares of 1e30 overflow and of 1e-30 vanish."""
    B, N, H, d = shape
    layer, x = layer_and_input(name, B, N, H * d, H, torch.float32, seed, **options)
    x = (scale * (x[:, :1].expand_as(x) if constant else x)).requires_grad_()
    got = layer(x)
    finite = gradients(got, layer, x)
    expected = TWINS[name](layer.double(), x.detach().double())
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert all(g.isfinite().all() for g in finite)
