"""InfSA at any shape and scale, in float32."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.attention.test_attention import INFSA, gradients, layer_and_input
from tests.attention.twins import TWINS

shapes = st.tuples(st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 8]))


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
