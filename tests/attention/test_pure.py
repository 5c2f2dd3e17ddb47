"""Pure InfSA beyond one dense hop: many hops, and blocks that never hold the N × N matrix."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infvit.attention import PureInfSA, pure
from infvit.attention.diffusion import diffuse
from infvit.errors import UsageError
from tests.attention.naive import EPS, heads
from tests.attention.test_attention import gradients, layer_and_input

ROOT = Path(__file__).parents[2]


def neumann(layer, x):
    """Σ_{t=1..hops} (gamma Ahat)ᵗ V with matrix powers, one head of one image at a time."""
    images = []
    for image in x:
        Q, K, V = heads(layer, image)
        outputs = []
        for h, gamma in enumerate(layer.gamma):
            A = torch.relu(Q[h] @ K[h].T / layer.head_dim)
            M = gamma * A / (torch.linalg.matrix_norm(A, "fro") + EPS)
            outputs.append(sum(torch.linalg.matrix_power(M, t) @ V[h] for t in range(1, layer.hops + 1)))
        images.append(torch.cat(outputs, dim=-1) @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


@pytest.mark.parametrize("hops", [1, 2, 5])
@pytest.mark.parametrize("blocks", [False, True])
def test_hops_sum_the_neumann_series(hops, blocks, monkeypatch):
    layer, x = layer_and_input("infsa", N=23, hops=hops)
    x.requires_grad_()
    if blocks:
        monkeypatch.setattr(pure, "DENSE_TOKENS", 0)
        monkeypatch.setattr("infvit.attention.diffusion.BLOCK_ELEMENTS", 2 * 4 * 23 * 5)  # 5 rows: the last block has 3
    fast, twin = layer(x), neumann(layer, x)
    assert (fast - twin).abs().max() <= 1e-10
    for got, expected in zip(gradients(fast, layer, x), gradients(twin, layer, x), strict=True):
        assert (got - expected).abs().max() <= 1e-8 * max(1, expected.abs().max())


@pytest.mark.parametrize("rows", [1, 4, 7, 50])
def test_diffuse_is_the_formula_for_any_block(rows):
    torch.manual_seed(0)
    Q, K, W = (torch.randn(2, 7, 3, dtype=torch.float64, requires_grad=True) for _ in range(3))
    U, squares = diffuse(Q, K, W, rows)
    A = torch.relu(Q @ K.mT)
    assert torch.allclose(U, A @ W)
    assert torch.allclose(squares, (A**2).sum((1, 2)))
    torch.autograd.gradcheck(lambda *t: diffuse(*t, rows), (Q, K, W))
    torch.library.opcheck(torch.ops.infvit.diffuse.default, (Q, K, W, rows))


def test_a_head_that_is_off_in_blocks(monkeypatch):
    monkeypatch.setattr(pure, "DENSE_TOKENS", 0)
    layer, x = layer_and_input("infsa")
    with torch.no_grad():
        layer.qkv.weight[32:64] = -layer.qkv.weight[:32]
        layer.qkv.bias[32:64] = -layer.qkv.bias[:32]
    x = x[:, :1].expand_as(x).clone().requires_grad_()
    output = layer(x)
    assert torch.equal(output, layer.proj.bias.expand_as(output))
    assert all(g.isfinite().all() for g in gradients(output, layer, x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_blocks_in_lower_precision(dtype):
    layer, x = layer_and_input("infsa", N=600, D=64)
    expected = layer(x)
    got = layer.to(dtype)(x.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


def test_the_n_by_n_matrix_is_never_resident():
    """8,192 tokens, 4 heads: the matrices are 1,024 MiB, two blocks of them 128 MiB."""
    command = [sys.executable, "-m", "tests.attention.peak_memory", "--tokens=8192", "--dim=32", "--heads=4"]
    peaks = {}
    for name in ("infsa", "softmax_unfused"):
        done = subprocess.run([*command, name], cwd=ROOT, capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout.split()[1])
    assert peaks["infsa"] < 300
    assert peaks["softmax_unfused"] > 1000  # the measurement sees what it must


def test_blocks_compile_without_a_break_and_count_their_flops():
    layer, x = layer_and_input("infsa", N=600, D=64, dtype=torch.float32)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert (compiled(x) - layer(x)).abs().max() <= 1e-5
    with FlopCounterMode(display=False) as counter:
        layer(x)
    assert counter.get_total_flops() == 2 * 2 * 600 * (4 * 64 * 64 + 2 * 600 * 64)


def test_hops_must_be_a_number_of_hops():
    for hops in (0, 1.5, -1):
        with pytest.raises(UsageError, match=f"hops={hops}"):
            PureInfSA(8, 2, hops=hops)
