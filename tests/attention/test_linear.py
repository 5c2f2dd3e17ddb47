"""Linear-InfSA as two sums over tokens: at once, in chunks, in pieces that are added; and its precision over many."""

import pytest
import torch

from infvit.attention import LinearInfSA
from tests.attention import naive
from tests.attention.test_attention import assert_equal, layer_and_input, peak_bytes


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_chunks_equal_the_naive_twin(chunk, qkv_bias):
    layer, x = layer_and_input("linear_infsa", chunk=chunk, qkv_bias=qkv_bias)
    x.requires_grad_()
    assert_equal(layer(x), naive.linear(layer, x), layer, x)


@pytest.mark.slow
@pytest.mark.parametrize("cast", [True, False], ids=["cast", "autocast"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_precise_over_331_776_tokens(dtype, cast):
    """9216 × 9216 pixels in patches of 16: a weight is about 3e-6, which bfloat16 sums would lose."""
    layer, _ = layer_and_input("linear_infsa", D=16, H=2, dtype=dtype if cast else torch.float32)
    x, got = (torch.randn(1, 331_776, 16) + 0.5).to(dtype if cast else torch.float32), []
    for layer.chunk in (None, 50_000):
        with torch.autocast("cpu", dtype, enabled=not cast and dtype != torch.float32):
            got.append(layer(x)[:, :1].double())
    expected = naive.linear(layer.double(), x.double())[:, :1]
    for found in got:
        assert (found - expected).norm() <= (1e-5 if dtype == torch.float32 else 1e-2) * expected.norm()


@pytest.mark.slow
def test_chunks_take_memory_that_does_not_depend_on_the_number_of_tokens():
    """The largest tensor made besides x is a chunk's Q, for any N."""
    layer = LinearInfSA(16, 2, chunk=256)
    for N in (1_000, 100_000):
        x = torch.randn(1, N, 16)
        with torch.no_grad():
            assert 0 < peak_bytes(layer, x) <= 10 * 256 * 16 * 4
