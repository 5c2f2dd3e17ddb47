"""Graph quantities against networkx, series written out, and dense eigenvalues."""

import warnings

import networkx as nx
import pytest
import torch

from infvit.attention import ATTENTIONS, LinearInfSA
from infvit.errors import UsageError
from infvit.graph import (
    absorbing_chain,
    ahat,
    eigenvector_centrality,
    katz,
    linear_vs_perron,
    pagerank,
    spectral_radius,
)

VECTORS = {
    "katz out": lambda A: katz(A, 0.9, "out"),
    "katz in": lambda A: katz(A, 0.9, "in"),
    "pagerank": pagerank,
    "left": lambda A: eigenvector_centrality(A, "left", 1e-12).vector,
    "right": lambda A: eigenvector_centrality(A, "right", 1e-12).vector,
    "visits": lambda A: absorbing_chain(A, 0.9).F,
    "kernel": lambda A: absorbing_chain(A, 0.9).neumann_kernel,
    "steps": lambda A: absorbing_chain(A, 0.9).steps,
    "R": lambda A: absorbing_chain(A, 0.9).R,
    "radius": lambda A: spectral_radius(A, 1e-12),
}


def graph(*shape, seed=0, density=0.6, dtype=torch.float64):
    """A directed, weighted graph (..., N, N) with rows summing to at most 1; a cycle makes it strongly connected."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.rand(*shape, dtype=torch.float64, generator=generator)
    A = A * (torch.rand(*shape, generator=generator) < density)
    A = A + 0.1 * torch.eye(shape[-1], dtype=torch.float64).roll(1, dims=1)
    return (A / (A.sum(-1).amax(-1)[..., None, None] + 1e-12)).to(dtype)


def edges(*pairs, N):
    A = torch.zeros(N, N, dtype=torch.float64)
    for i, j in pairs:
        A[i, j] = 1
    return A


def with_gradient(quantity, A):
    A = A.clone().requires_grad_()
    value = quantity(A)
    return value.detach(), torch.autograd.grad(value.square().sum(), A)[0]


def oracle(centrality, A, **options):
    values = centrality(nx.from_numpy_array(A.numpy(), create_using=nx.DiGraph), **options)
    return torch.tensor([values[i] for i in range(len(A))], dtype=torch.float64)


def naive_perron(A, side):
    values, vectors = torch.linalg.eig(A if side == "right" else A.mT)
    v = vectors[:, values.real.argmax()].real.abs()
    return v / v.sum(), values.real.max()


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("direction", ["in", "out"])
def test_katz_is_networkx_without_the_empty_path(direction, seed):
    A = graph(12, 12, seed=seed)
    incoming = A if direction == "in" else A.mT.contiguous()
    # networkx solves x = alpha Aᵀ x + beta, so x = (I − alpha A)⁻ᵀ 1 = Fᵀ 1, which counts the empty path.
    expected = oracle(nx.katz_centrality_numpy, incoming, alpha=0.7, beta=1, normalized=False, weight="weight") - 1
    torch.testing.assert_close(katz(A, 0.7, direction), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("side", ["left", "right"])
def test_eigenvector_centrality_is_networkx_summing_to_one(side, seed):
    A = graph(12, 12, seed=seed)
    expected = oracle(nx.eigenvector_centrality_numpy, A if side == "left" else A.mT.contiguous(), weight="weight")
    v, eigenvalue, residual = eigenvector_centrality(A, side, tolerance=1e-12)
    torch.testing.assert_close(v, expected / expected.sum(), rtol=1e-9, atol=1e-11)
    assert (v >= 0).all()
    assert residual <= 1e-12
    torch.testing.assert_close(eigenvalue, naive_perron(A, side)[1], rtol=1e-10, atol=0)


@pytest.mark.parametrize("damping", [0.0, 0.5, 0.85])
def test_pagerank_is_networkx(damping):
    A = graph(12, 12)
    A[3] = A[7] = 0  # dangling
    expected = oracle(nx.pagerank, A, alpha=damping, tol=1e-14, max_iter=1000)
    torch.testing.assert_close(pagerank(A, damping), expected, rtol=1e-9, atol=1e-11)


def test_fundamental_matrix_is_the_neumann_series():
    A, gamma = graph(2, 3, 9, 9), 0.9
    chain = absorbing_chain(A, gamma)
    term = total = torch.eye(9, dtype=A.dtype).expand_as(A)
    for _ in range(400):
        term = term @ (gamma * A)
        total = total + term
    torch.testing.assert_close(chain.F, total, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(chain.neumann_kernel, total - torch.eye(9, dtype=A.dtype), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(chain.M, gamma * A)
    # Every walk is absorbed in the end, and Katz sums the kernel.
    torch.testing.assert_close(chain.F @ chain.R[..., None], torch.ones(2, 3, 9, 1, dtype=A.dtype))
    torch.testing.assert_close(chain.steps, chain.F.sum(-1))
    torch.testing.assert_close(katz(A, gamma, "out"), chain.neumann_kernel.sum(-1))
    torch.testing.assert_close(katz(A, gamma, "in"), chain.neumann_kernel.sum(-2))


def test_the_neumann_kernel_of_small_weights_does_not_cancel():
    A = 1e-6 * graph(8, 8)
    exact, single = absorbing_chain(A, 0.9), absorbing_chain(A.float(), 0.9)
    torch.testing.assert_close(single.neumann_kernel.double(), exact.neumann_kernel, rtol=1e-5, atol=0)
    torch.testing.assert_close(katz(A.float(), 0.9).double(), katz(A, 0.9), rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", VECTORS)
def test_a_batch_equals_each_graph_alone(name):
    A = graph(2, 3, 7, 7)
    A[0, 1] = 0
    A[1, 2] = edges((0, 1), (1, 2), N=7)
    batched = VECTORS[name](A)
    for b in range(2):
        for h in range(3):
            torch.testing.assert_close(batched[b, h], VECTORS[name](A[b, h]), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", VECTORS)
def test_nan_stays_in_its_image(name):
    A = graph(3, 2, 6, 6)
    with_nan = A.clone()
    with_nan[1, 0, 2, 3] = torch.nan
    (clean, clean_gradient), (got, gradient) = (with_gradient(VECTORS[name], A) for A in (A, with_nan))
    for value, expected in ((got, clean), (gradient, clean_gradient)):
        torch.testing.assert_close(value[[0, 2]], expected[[0, 2]], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(value[1, 1], expected[1, 1], rtol=1e-12, atol=1e-14)
    assert got[1, 0].isnan().any()
    assert VECTORS[name](with_nan)[1, 0].isnan().any()  # also where no gradient is asked for


@pytest.mark.parametrize("name", VECTORS)
def test_gradients(name):
    A = graph(2, 4, 4, density=1.0).requires_grad_()
    torch.autograd.gradcheck(VECTORS[name], A)


@pytest.mark.parametrize("quantity", [katz, lambda A, gamma: absorbing_chain(A, gamma).F])
def test_gradients_in_a_discount_per_head(quantity):
    A, gamma = graph(2, 3, 4, 4, density=1.0), torch.tensor([0.3, 0.6, 0.9], dtype=torch.float64)
    torch.autograd.gradcheck(quantity, (A.requires_grad_(), gamma.requires_grad_()))
    torch.testing.assert_close(quantity(A, gamma)[:, 1], quantity(A[:, 1], 0.6))


@pytest.mark.parametrize("name", VECTORS)
@pytest.mark.parametrize(
    "A",
    [
        torch.zeros(1, 1, dtype=torch.float64),
        torch.full((1, 1), 0.5, dtype=torch.float64),
        torch.zeros(2, 4, 4, dtype=torch.float64),
        torch.block_diag(graph(3, 3), 0.5 * graph(4, 4), torch.zeros(2, 2)),
        torch.block_diag(graph(3, 3), graph(3, 3)),
        0.5 * edges((0, 1), (1, 2), (0, 2), N=4),
    ],
    ids=["one off", "one", "all zero", "disconnected", "twins", "without cycles"],
)
def test_degenerate_graphs_give_finite_values_and_gradients(name, A):
    value, gradient = with_gradient(VECTORS[name], A)
    assert value.isfinite().all()
    assert gradient.abs().max() < 1e3


def test_an_all_zero_graph_is_uniform_and_absorbs_at_once():
    A = torch.zeros(4, 4)
    chain, perron = absorbing_chain(A, 0.95), eigenvector_centrality(A)
    assert (chain.R == 1).all()
    assert torch.equal(chain.F, torch.eye(4))
    assert (chain.steps == 1).all()
    assert (katz(A, 0.95) == 0).all()
    assert perron.eigenvalue == 0
    assert perron.residual == 0
    torch.testing.assert_close(perron.vector, torch.full((4,), 0.25))
    torch.testing.assert_close(pagerank(A), torch.full((4,), 0.25))


@pytest.mark.parametrize(
    ("A", "radius"),
    [
        (edges((0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (3, 0), N=4), 3**0.5),  # a star
        (edges((0, 1), (1, 2), (2, 0), (2, 1), N=3), 1.3247179572447460),  # the plastic number
        (torch.diag(torch.tensor([1.0, 1.0, 3.0, 1.0]), 1)[:5, :5] + edges((4, 0), N=5), 3**0.2),  # period 5
        (edges((0, 1), (1, 2), (0, 2), N=3), 0.0),
    ],
    ids=["bipartite", "plastic", "period 5", "without cycles"],
)
def test_power_iteration_converges_where_the_plain_one_does_not(A, radius):
    for side in ("left", "right"):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            perron = eigenvector_centrality(A.double(), side, tolerance=1e-9)
        assert perron.residual <= 1e-9
        assert perron.eigenvalue.item() == pytest.approx(radius, abs=1e-8)


def test_power_iteration_that_has_not_converged_warns():
    path = edges(*((i, i + 1) for i in range(59)), *((i + 1, i) for i in range(59)), N=60)
    with pytest.warns(RuntimeWarning, match="max_iterations"):
        perron = eigenvector_centrality(path, max_iterations=5)
    assert perron.residual > 1e-6


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_perron_vectors_and_pagerank_are_scale_invariant(scale):
    A = graph(9, 9, dtype=torch.float32)
    for quantity in (pagerank, lambda A: eigenvector_centrality(A).vector):
        torch.testing.assert_close(quantity(A * scale), quantity(A), rtol=1e-4, atol=1e-6)


def test_rows_above_one_are_reported_and_kept():
    A = torch.tensor([[0.5, 0.9], [0.1, 0.2]], dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="overflow") as caught:
        chain = absorbing_chain(torch.stack([A, A / 2]), 0.9)
    assert len(caught) == 1
    assert chain.overflow.tolist() == [[True, False], [False, False]]
    torch.testing.assert_close(chain.M[0], 0.9 * A)
    torch.testing.assert_close(chain.R[0], torch.tensor([1 - 0.9 * 1.4, 1 - 0.9 * 0.3], dtype=torch.float64))


@pytest.mark.parametrize("quantity", [katz, absorbing_chain])
@pytest.mark.parametrize("gamma", [1.0, 1.3])
def test_a_divergent_series_is_refused(quantity, gamma):
    A = graph(6, 6)
    A = A / spectral_radius(A, 1e-14)
    quantity(A[:5, :5], 0.9)
    with pytest.raises(UsageError, match=r"gamma is too large.* 1 of 2 matrices"):
        quantity(torch.stack([A * 0.5, A.clone() if gamma > 1 else torch.eye(6, dtype=A.dtype)]), gamma)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype):
    A = graph(2, 6, 6).to(dtype)
    for name, quantity in VECTORS.items():
        if name not in ("left", "right", "radius"):
            assert quantity(A).dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        v, eigenvalue, _ = eigenvector_centrality(A.float())
        c = katz(A.float(), 0.9)
    torch.testing.assert_close(v, eigenvector_centrality(A).vector)
    torch.testing.assert_close(eigenvalue, eigenvector_centrality(A).eigenvalue)
    torch.testing.assert_close(c, katz(A, 0.9))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda A: katz(A[0], 0.9), r"Ahat has shape \(4,\)"),
        (lambda A: pagerank(A[:3]), r"Ahat has shape \(3, 4\), expected \(\.\.\., N, N\)"),
        (lambda A: spectral_radius(A[:0, :0]), r"Ahat has shape \(0, 0\)"),
        (lambda A: absorbing_chain(A.int(), 0.9), r"Ahat has dtype torch.int32"),
        (lambda A: eigenvector_centrality(-A), r"Ahat of shape \(4, 4\) has negative entries"),
        (lambda A: katz(A.expand(2, 3, 4, 4), torch.ones(2) / 2), r"gamma of shape \(2,\).*shape \(2, 3, 4, 4\)"),
        (lambda A: katz(A, -0.5), r"gamma=-0.5"),
        (lambda A: katz(A, 0.5, "both"), r"direction='both'"),
        (lambda A: eigenvector_centrality(A, "top"), r"side='top'"),
        (lambda A: eigenvector_centrality(A, tolerance=0), r"tolerance=0"),
        (lambda A: pagerank(A, 1.0), r"damping=1.0"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message) as caught:
        call(graph(4, 4))
    assert "\n" not in str(caught.value)


def attention(name, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return ATTENTIONS[name](32, num_heads=4).to(dtype), torch.randn(3, 11, 32, dtype=dtype)


@pytest.mark.parametrize("name", ["infsa", "softmax", "softmax_unfused"])
def test_ahat_of_a_matrix_layer_is_its_weights(name):
    layer, x = attention(name)
    assert torch.equal(ahat(layer, x), layer.weights(x))


def test_ahat_of_linear_infsa_is_that_of_pure_infsa_with_the_same_projections():
    linear, x = attention("linear_infsa")
    pure, _ = attention("infsa", seed=1)
    pure.load_state_dict(linear.state_dict())
    torch.testing.assert_close(ahat(linear, x), pure.weights(x))
    with pytest.raises(ValueError, match=r"x has shape \(3, 32\)"):
        ahat(linear, x[:, 0])


def test_linear_vs_perron_equals_dense_eigenvectors():
    layer, x = attention("linear_infsa")
    got, a = linear_vs_perron(layer, x, tolerance=1e-12), layer.weights(x)
    Q, K, _ = layer.heads(x)
    for side, cosines in got._asdict().items():
        assert cosines.shape == (3, 4)
        for b in range(3):
            for h in range(4):
                v, _ = naive_perron((Q[b, h] @ K[b, h].mT).relu(), side)
                expected = a[b, h] @ v / (a[b, h].norm() * v.norm())
                torch.testing.assert_close(cosines[b, h], expected, rtol=1e-8, atol=1e-10)
    assert got.left.mean() > got.right.mean() + 0.1  # a weighs what is looked at: the left vector


def test_linear_vs_perron_of_a_head_that_is_off_is_zero():
    layer, x = attention("linear_infsa", torch.float32)
    with torch.no_grad():
        layer.qkv.weight.zero_()
        layer.qkv.bias.zero_()
        layer.qkv.bias[:32], layer.qkv.bias[32:64] = 1, -1
        layer.qkv.bias[32:40] = 1  # the first head alone is on, with every token alike
    cosines = torch.stack(linear_vs_perron(layer, x))
    torch.testing.assert_close(cosines[..., 0], torch.ones(2, 3))
    assert (cosines[..., 1:] == 0).all()


def test_linear_vs_perron_is_scale_invariant():
    torch.manual_seed(0)
    layer, x = LinearInfSA(32, num_heads=4, qkv_bias=False).double(), torch.randn(2, 11, 32, dtype=torch.float64)
    for faint, plain in zip(linear_vs_perron(layer, 1e-9 * x), linear_vs_perron(layer, x), strict=True):
        torch.testing.assert_close(faint, plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["infsa", "softmax"])
def test_linear_vs_perron_requires_a_linear_layer(name):
    layer, x = attention(name)
    with pytest.raises(UsageError, match=r"layer is \w+ with weights of shape \(3, 4, 11, 11\)"):
        linear_vs_perron(layer, x)
