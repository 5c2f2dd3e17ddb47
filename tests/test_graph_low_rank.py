"""Centralities of a graph from its factors, against those of the N × N matrix."""

import pytest
import torch

from infvit.attention import KernelInfSA
from infvit.errors import UsageError
from infvit.graph import LowRankGraph, absorbing_chain, eigenvector_centrality, katz
from tests.attention.test_attention import layer_and_input


@pytest.fixture
def graph():
    """The graph of a layer for two images, one head of the second of which is off."""
    layer, x = layer_and_input("kernel_infsa", N=30)
    U, W = layer.factors(x)
    U[1, 2] = 0
    return LowRankGraph(U.detach(), W.detach())


@pytest.mark.filterwarnings("ignore:rows of gamma Ahat sum")
def test_equal_to_those_of_the_matrix(graph):
    Ahat, gamma = graph.U @ graph.W.mT, torch.tensor([0.5, 0.9, 0.95, 0.99], dtype=torch.float64)
    chain = absorbing_chain(Ahat, gamma)
    start = torch.rand(30, dtype=torch.float64).expand(2, 4, -1)
    pairs = [
        (graph.katz(gamma), katz(Ahat, gamma)),
        (graph.katz(gamma, "in"), katz(Ahat, gamma, "in")),
        (graph.steps(gamma), chain.steps),
        (graph.visits(start, gamma), (start.unsqueeze(-2) @ chain.F).squeeze(-2)),
    ]
    for side in ("left", "right"):
        found, dense = graph.eigenvector_centrality(side), eigenvector_centrality(Ahat, side, 1e-13)
        assert found.residual.max() <= 1e-10
        pairs += [(found.vector, dense.vector), (found.eigenvalue, dense.eigenvalue)]
    for found, expected in pairs:
        assert (found - expected).abs().max() <= 1e-10 * max(1, expected.abs().max())


def test_differentiable_as_the_matrix(graph):
    U = graph.U.clone().requires_grad_()
    gradients = [
        torch.autograd.grad(values.square().sum(), U)[0]
        for values in (LowRankGraph(U, graph.W).katz(0.9), katz(U @ graph.W.mT, 0.9))
    ]
    torch.testing.assert_close(*gradients)


def test_nan_stays_in_its_matrix(graph):
    U = graph.U.clone()
    U[0, 1, 3] = torch.nan
    for quantity in (lambda g: g.katz(0.9), lambda g: g.eigenvector_centrality().vector):
        found, clean = quantity(LowRankGraph(U, graph.W)), quantity(graph)
        assert found[0, 1].isnan().any()
        assert torch.equal(found[1], clean[1])


def test_a_diverging_series_is_refused(graph):
    gamma = 1.01 / graph.eigenvector_centrality().eigenvalue.max().item()
    with pytest.raises(UsageError, match="spectral radius reaches 1"):
        graph.katz(gamma)


def test_331_776_tokens_without_their_matrix():
    layer = KernelInfSA(64, 1)
    graph = LowRankGraph(*(t.detach() for t in layer.factors(torch.randn(1, 331_776, 64))))
    left = graph.eigenvector_centrality()
    assert left.vector.shape == (1, 1, 331_776)
    assert left.residual.item() <= 1e-5
    assert graph.katz(0.95, "in").isfinite().all()
