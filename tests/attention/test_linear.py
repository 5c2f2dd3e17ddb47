"""Linear-InfSA as two sums over tokens: at once, in chunks, in pieces that are added; and its precision over many."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infvit.attention import LinearInfSA
from infvit.attention.chunked import pool
from tests.attention import naive
from tests.attention.test_attention import assert_equal, layer_and_input, peak_bytes


@pytest.mark.parametrize("chunk", [1, 4, 13, 100])
@pytest.mark.parametrize("qkv_bias", [True, False])
def test_chunks_equal_the_naive_twin(chunk, qkv_bias):
    layer, x = layer_and_input("linear_infsa", chunk=chunk, qkv_bias=qkv_bias)
    x.requires_grad_()
    assert_equal(layer(x), naive.linear(layer, x), layer, x)


def test_sums_of_pieces_add_up_to_the_layer():
    """The sums of three ranks, added as by an all-reduce."""
    layer, x = layer_and_input("linear_infsa")
    x.requires_grad_()
    pieces = x.split([2, 7, 4], dim=1)
    first = [layer.query_sums(piece) for piece in pieces]
    qbar = layer.qbar(first[0] + first[1] + first[2])
    second = [layer.token_sums(piece, qbar) for piece in pieces]
    row = layer.output(second[0] + second[1] + second[2], x.dtype)
    assert second[0].weight.shape == (2, 4)
    assert (first[0].weighted.shape, second[0].weighted.shape) == ((2, 4, 8), (2, 4, 32))
    assert_equal(row.expand_as(x), naive.linear(layer, x), layer, x)


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


@pytest.mark.parametrize("bias", [True, False])
def test_pool_as_an_operator_of_torch(bias):
    torch.manual_seed(0)
    x, W, b = (torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((2, 5, 4), (12, 4), (12,)))
    padding = torch.arange(5) >= torch.tensor([5, 3])[:, None]
    arguments = (x, W, b if bias else None, padding, 2, 2)
    torch.autograd.gradcheck(lambda *t: pool(*t, *arguments[len(t) :]), arguments[: 2 + bias])
    torch.library.opcheck(torch.ops.infvit.pool.default, arguments)


@pytest.mark.slow
def test_chunks_take_memory_that_does_not_depend_on_the_number_of_tokens():
    """The largest tensor made besides x is a chunk's Q, for any N."""
    layer = LinearInfSA(16, 2, chunk=256)
    for N in (1_000, 100_000):
        x = torch.randn(1, N, 16)
        with torch.no_grad():
            assert 0 < peak_bytes(layer, x) <= 10 * 256 * 16 * 4


@pytest.mark.slow
def test_chunks_compile_without_a_break_and_count_their_flops():
    layer, x = layer_and_input("linear_infsa", N=600, D=64, dtype=torch.float32, chunk=100)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert (compiled(x) - layer(x)).abs().max() <= 1e-5
    counts = []
    for layer.chunk in (None, 100):
        with FlopCounterMode(display=False) as counter:
            layer(x)
        counts.append(counter.get_total_flops())
    assert counts[1] == pytest.approx(counts[0], rel=0.02)  # the products of single vectors are left out
    assert counts[1] >= 2 * 2 * 600 * 64 * (64 + 3 * 4)
