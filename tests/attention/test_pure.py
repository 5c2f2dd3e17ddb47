"""Pure InfSA beyond one dense hop: several and infinite hops, masks, and tiles that never hold the N × N matrix."""

import math
import warnings

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from infvit.attention import PureInfSA, UnfusedSoftmaxAttention, diffusion, graph_tiles, pure
from infvit.attention.diffusion import INFINITE, diffuse, spectral_bound
from infvit.errors import UsageError
from tests.attention import naive
from tests.attention.test_attention import assert_equal, layer_and_input, peak_bytes


def assert_twins(layer, x, **masks):
    x.requires_grad_()
    assert_equal(layer(x, **masks), naive.pure(layer, x, **masks), layer, x)


@pytest.mark.parametrize("hops", [1, 2, 5, math.inf])
@pytest.mark.usefixtures("path")
def test_hops_sum_the_neumann_series(hops):
    layer, x = layer_and_input("infsa", N=23, hops=hops, tolerance=1e-13)
    assert_twins(layer, x)


@pytest.mark.parametrize("hops", [1, 3, math.inf])
@pytest.mark.parametrize("shape", [(13, 13), (2, 13, 13), (2, 4, 13, 13)], ids=["all", "each image", "each head"])
@pytest.mark.usefixtures("path")
def test_attention_masks(shape, hops):
    layer, x = layer_and_input("infsa", N=13, hops=hops, tolerance=1e-13)
    assert_twins(layer, x, attn_mask=torch.rand(shape) < 0.4)


@pytest.mark.parametrize("hops", [1, 3, math.inf])
@pytest.mark.usefixtures("path")
def test_padding_beside_other_masks(hops):
    layer, x = layer_and_input("infsa", N=13, hops=hops, tolerance=1e-13)
    hidden, real = torch.rand(13, 13) < 0.4, 9
    padding = torch.arange(13).expand(2, 13) >= real
    alone = layer(x[:, :real], attn_mask=hidden[:real, :real])
    padded = layer(x, key_padding_mask=padding, attn_mask=hidden)
    assert (padded[:, :real] - alone).abs().max() <= 1e-12


@pytest.mark.parametrize("tile", [1, 3, 5, 50])
def test_tiles_of_any_size(tile, monkeypatch):
    layer, x = layer_and_input("infsa", B=1, N=5, hops=3)
    monkeypatch.setattr(pure, "DENSE_TOKENS", 0)
    monkeypatch.setattr(graph_tiles, "TILE", tile)
    assert_twins(layer, x)


@pytest.mark.slow
@pytest.mark.parametrize("hops", [1, 2, INFINITE])
@pytest.mark.parametrize("bias", [True, False])
def test_diffuse_as_an_operator_of_torch(hops, bias, monkeypatch):
    monkeypatch.setattr(graph_tiles, "TILE", 2)
    torch.manual_seed(0)
    shapes = {"x": (2, 3, 2), "W": (6, 2), "b": (6,)} if bias else {"x": (2, 3, 2), "W": (6, 2)}
    tensors = [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in shapes.values()]
    gamma = torch.tensor([0.3, 0.9], dtype=torch.float64, requires_grad=True)
    padding = torch.tensor([[False] * 3, [False, False, True]])
    rest = (hops, 1e-14, padding, None)

    def call(x, W, gamma, b=None):
        return diffuse(x, W, b, gamma, *rest)[0]

    torch.autograd.gradcheck(call, (*tensors[:2], gamma, *tensors[2:]))
    b = tensors[2] if bias else None
    torch.library.opcheck(torch.ops.infvit.diffuse.default, (*tensors[:2], b, gamma, *rest))


@pytest.mark.slow
@pytest.mark.parametrize("hops", [1, 2, 4, 8])
@pytest.mark.parametrize("gamma", [0.5, 0.95])
@pytest.mark.usefixtures("path")
def test_the_truncation_bound_holds(hops, gamma):
    layer, x = layer_and_input("infsa", N=23, hops=hops, gamma=gamma)
    bound = layer.truncation_bound(x)
    everything = PureInfSA(32, 4, hops=math.inf).double()
    everything.load_state_dict(layer.state_dict())
    all_hops, some = (each._dense(each._qkv(x, pure.Masks()), None) for each in (everything, layer))
    missing = torch.linalg.vector_norm(all_hops - some, dim=(1, 3))
    assert bound.shape == (2, 4)
    assert (missing <= bound).all()
    exact = layer.gamma * torch.linalg.matrix_norm(layer.weights(x), 2)
    exact = exact ** (hops + 1) / (1 - exact) * torch.linalg.vector_norm(layer.heads(x)[2], dim=(-2, -1))
    assert (exact <= bound * (1 + 1e-12)).all()
    assert (bound <= 1.05 ** (hops + 1) * exact).all()  # and not looser than documented
    assert (everything.truncation_bound(x) == 0).all()


def test_the_spectral_bound_is_one_for_weak_graphs():
    """Chains, stars and unconnected pairs, where power iteration is slow or a vector gets entries of 0."""
    torch.manual_seed(0)
    for sparsity in (0.5, 0.9, 0.99):
        qkv = torch.randn(3, 40, 3, 2, 40, dtype=torch.float64)
        qkv[:, :, 0] = torch.eye(40, dtype=torch.float64)[:, None]
        qkv[:, :, 1] *= torch.rand(3, 40, 2, 40) > sparsity
        A = torch.relu(qkv[:, :, 0].transpose(1, 2) @ qkv[:, :, 1].permute(0, 2, 3, 1))
        exact = torch.linalg.matrix_norm(A, 2) / torch.linalg.matrix_norm(A)
        bound = spectral_bound(qkv, torch.ones(2, dtype=torch.float64))
        assert (exact <= bound * (1 + 1e-4)).all()  # eps counts A / 40
        assert (bound <= 1.0001).all()


def test_an_iteration_that_does_not_converge_warns(monkeypatch, path):
    monkeypatch.setattr(diffusion, "MAX_ITERATIONS", 3)
    layer, x = layer_and_input("infsa", hops=math.inf)
    if path == "tiles":
        with pytest.warns(RuntimeWarning, match="stopped after 3 terms"):
            layer(x)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            layer(x)


def test_a_looser_tolerance_stops_within_it(monkeypatch):
    monkeypatch.setattr(pure, "DENSE_TOKENS", 0)
    layer, x = layer_and_input("infsa", N=40, hops=math.inf)
    exact = naive.pure(layer, x)
    errors = []
    for layer.tolerance in (1e-2, 1e-6):
        errors.append(((layer(x) - exact).norm() / exact.norm()).item())
    assert errors[0] <= 1e-2
    assert errors[1] <= 1e-6 < errors[0]


@pytest.mark.parametrize("hops", [1, 2, math.inf])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_tiles_in_lower_precision(dtype, hops):
    layer, x = layer_and_input("infsa", N=600, D=64, hops=hops)
    expected = layer(x)
    got = layer.to(dtype)(x.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert (got.double() - expected).norm() <= tolerance * expected.norm()


def test_the_n_by_n_matrix_is_never_resident():
    """4,096 tokens, 4 heads: the matrices are 256 MiB."""
    x = torch.randn(1, 4096, 32, requires_grad=True)
    assert peak_bytes(lambda: PureInfSA(32, 4)(x).sum().backward()) < 60 * 2**20
    assert peak_bytes(lambda: UnfusedSoftmaxAttention(32, 4)(x).sum().backward()) > 250 * 2**20


@pytest.mark.parametrize("hops", [1, 3])
def test_tiles_compile_without_a_break_and_count_their_flops(hops):
    layer, x = layer_and_input("infsa", N=600, D=64, dtype=torch.float32, hops=hops)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    assert (compiled(x) - layer(x)).abs().max() <= 1e-5
    projections, product = 2 * 2 * 600 * 4 * 64 * 64, 2 * 2 * 600 * 600 * 64
    with FlopCounterMode(display=False) as counter:
        output = layer(x)
        assert counter.get_total_flops() == projections + 2 * hops * product
        output.sum().backward()
    backward = 2 * projections
    assert counter.get_total_flops() == projections + 2 * hops * product + backward + (4 + 3 * hops - 2) * product


def test_tiles_refuse_a_projection_that_does_more_than_multiply(monkeypatch):
    class Adapted(torch.nn.Linear):
        def forward(self, x):
            return super().forward(x) + 1

    layer, x = layer_and_input("infsa")
    layer.qkv.__class__ = Adapted
    assert layer(x).isfinite().all()
    monkeypatch.setattr(pure, "DENSE_TOKENS", 0)
    with pytest.raises(UsageError, match="PureInfSA multiplies with the weights of qkv, and Adapted does"):
        layer(x)
