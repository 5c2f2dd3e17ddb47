"""KernelInfSA: every hop of the infinite series in closed form and linear time, over a graph of low rank."""

import math
from functools import reduce
from operator import add
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from infvit.attention.focused_linear import focused
from infvit.attention.layer import EPS, Q_ALONE, Masks, largest_entry, without_autocast
from infvit.attention.series import SeriesAttention
from infvit.attention.sums import Totals, sum_dtype
from infvit.attention.tokens import drop_tokens, precise, zero_padding
from infvit.errors import expect

LARGEST_GAMMA = 1 - 1e-6
"""A gamma learned nearer to 1 counts as this: the linear system keeps half of float64's digits."""

BLOCK = 4096
"""Tokens whose products are added in float32, before those of all blocks are in float64."""


class Products(NamedTuple):
    """What is summed over tokens, in `sum_dtype`, each (B, H, d, d)."""

    qq: Tensor
    """phi(Q)ᵀ phi(Q)."""
    kk: Tensor
    """phi(K)ᵀ phi(K)."""
    kq: Tensor
    """M = phi(K)ᵀ phi(Q)."""
    kv: Tensor
    """phi(K)ᵀ V."""


class KernelInfSA(SeriesAttention):
    """The series of PureInfSA over affinities of rank d: each token its own result, all hops, in O(N).

        A    = phi(Q) phi(K)ᵀ / d                  phi ≥ 0; (N, N), never formed
        Ahat = A / (norm(A) + eps)                 spectral radius at most 1
        O    = ((I − gamma Ahat)⁻¹ − I) V          hops = inf
             = c phi(Q) (I − c M)⁻¹ phi(K)ᵀ V      M = phi(K)ᵀ phi(Q), c = gamma / (d (norm(A) + eps))
        O    = c phi(Q) Σ_{t<hops} (c M)ᵗ phi(K)ᵀ V

    The fourth line is the push-through identity, exact, with a (d, d) system in place of (N, N), and ‖A‖_F² is
    ⟨phi(Q)ᵀ phi(Q), phi(K)ᵀ phi(K)⟩ / d². So tokens interact through four products of (d, d) numbers a head, which are
    sums over tokens (`SummedAttention`) in one round. They are added, and the system solved, in float64 (float32 on
    devices without it).

    A head whose affinities are all 0 gives exactly 0 and gradient 0. `attn_drop` drops whole tokens of V.

    Args:
        hops: largest length of the paths that are summed, or `math.inf`.
        features: phi: "relu"; "cubed", relu(x)³ at the norm of relu(x), as in focused linear attention; "softplus".
        norm: "frobenius", ‖A‖_F, as in PureInfSA; "spectral", ‖M⁸‖_F^(1/8) / d, a tighter bound on the spectral radius,
            and at least ‖A‖_F / 100: a graph without cycles has the radius 0.

    Raises:
        UsageError: if hops, features or norm is none of these.
    """

    name = "kernel_infsa"
    time, memory, state, rounds = "O(N D d)", "O(N D)", "4 d²", 1
    mask_hint = (
        "it never forms the N × N matrix of which single entries could be hidden; use key_padding_mask to leave tokens "
        "out for all, or SoftmaxAttention"
    )

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        hops: float = math.inf,
        features: Literal["relu", "cubed", "softplus"] = "relu",
        norm: Literal["frobenius", "spectral"] = "frobenius",
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, num_heads, hops=hops, **kwargs)
        expect(features in ("relu", "cubed", "softplus"), f"features={features!r}", "relu, cubed or softplus")
        expect(norm in ("frobenius", "spectral"), f"norm={norm!r}", "frobenius or spectral")
        self.features, self.norm = features, norm

    def sums(self, x: Tensor, *before: Tensor, padding: Tensor | None = None) -> Tensor:
        """The four products over some tokens: (B, n, D) → (B, H, 4, d, d). padding: (B, n), True for padding."""
        fq, fk, V = self._projected(x, Masks(padding))
        with without_autocast(x):
            return torch.stack(_products(fq, fk, V), 2)

    def output(self, x: Tensor, totals: Totals) -> Tensor:
        """The output of some tokens, (B, n, D), from the products over all."""
        (Q,) = self.project(x, Q_ALONE)
        return self.merge_heads(self._from_state(self._phi(Q), self._state(Products(*totals[0].unbind(2))), Q.dtype))

    def scores(self, x: Tensor, totals: Totals) -> Tensor:
        """The left Perron vector of Ahat at these tokens, up to a factor: phi(K) z with Mᵀ z = lambda z."""
        fk = self._projected(x, Masks())[1]
        return (fk @ perron(Products(*totals[0].unbind(2)).kq.mT).unsqueeze(-1).to(fk.dtype)).squeeze(-1)

    def factors(self, x: Tensor, **masks: Any) -> tuple[Tensor, Tensor]:
        """U and W with Ahat = U Wᵀ, in float32 or better: (B, N, D) → twice (B, H, N, d). Masks as in `forward`."""
        given = Masks(**masks)
        fq, fk, V = self._projected(self._checked(x, given), given)
        with without_autocast(x):
            return (fq / self._normaliser(_products(fq, fk, V))).to(fq.dtype), fk

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        fq, fk, V = self._projected(x, masks)
        with without_autocast(x):
            state = self._state(_products(fq, fk, drop_tokens(V, self.attn_drop)))
        return self._from_state(fq[:, :, :first], state, V.dtype), V

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """Ahat, without gamma."""
        U, W = self.factors(x, **masks._asdict())
        return U @ W.mT

    def _gain(self, x: Tensor, masks: Masks) -> Tensor:
        """‖Ahat‖₂² is the spectral radius of phi(Q)ᵀ phi(Q) phi(K)ᵀ phi(K), divided by that of the norm."""
        products = _products(*self._projected(x, masks))
        largest = radius_bound(products.qq @ products.kk, squarings=10).sqrt()
        return self._gamma() * largest / self._normaliser(products)[..., 0, 0]

    def _projected(self, x: Tensor, masks: Masks) -> tuple[Tensor, Tensor, Tensor]:
        """phi(Q), phi(K), both 0 at padding and in float32 or better, and V: three times (B, H, N, d)."""
        Q, K, V = self.heads(x)
        return zero_padding(self._phi(Q), masks), zero_padding(self._phi(K), masks), V

    def _phi(self, x: Tensor) -> Tensor:
        x = precise(x)
        with without_autocast(x):
            if self.features == "softplus":
                return F.softplus(x)
            return x.relu() if self.features == "relu" else focused(x, 3)

    def _gamma(self) -> Tensor:
        return self.gamma.to(sum_dtype(self.gamma)).clamp(max=LARGEST_GAMMA)

    def _normaliser(self, products: Products) -> Tensor:
        """d (norm(A) + eps), infinite where A is 0: (B, H, 1, 1)."""
        norm = _root((products.qq * products.kk).sum((-2, -1)), 2)
        if self.norm == "spectral":
            norm = torch.maximum(radius_bound(products.kq), norm / 100)
        return (norm + self.head_dim * EPS).masked_fill(norm == 0, math.inf)[..., None, None]

    def _state(self, products: Products) -> Tensor:
        """c Σ_{t<hops} (c M)ᵗ phi(K)ᵀ V: (B, H, d, d)."""
        with without_autocast(products.kq):
            c = self._gamma()[:, None, None] / self._normaliser(products)
            return c * self.resolvent(c * products.kq, products.kv)

    def _from_state(self, fq: Tensor, state: Tensor, dtype: torch.dtype) -> Tensor:
        with without_autocast(fq):
            return (fq @ state.to(fq.dtype)).to(dtype)


def _products(fq: Tensor, fk: Tensor, V: Tensor) -> Products:
    """The products over tokens: three times (B, H, n, d) → four times (B, H, d, d)."""
    blocks = map(_products_of_block, *(precise(t).split(BLOCK, -2) for t in (fq, fk, V)))
    return Products(*(reduce(add, parts) for parts in zip(*blocks, strict=True)))


def _products_of_block(fq: Tensor, fk: Tensor, V: Tensor) -> tuple[Tensor, ...]:
    # One factor of each product is divided by its largest entry: squares of 1e30 leave the range of float32.
    q, k = _largest(fq), _largest(fk)
    query, key = (fq / q).mT, (fk / k).mT
    products = ((query @ fq, q), (key @ fk, k), (key @ fq, k), (key @ V, k))
    return tuple(product.to(sum_dtype(product)) * unit.to(sum_dtype(unit)) for product, unit in products)


def _largest(features: Tensor) -> Tensor:
    """The largest entry of nonnegative features, at least the smallest normal number, detached: → (B, H, 1, 1)."""
    return features.detach().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(features.dtype).tiny)


def radius_bound(M: Tensor, squarings: int = 3) -> Tensor:
    """‖M^n‖_F^(1/n) with n = 2^squarings, at least the spectral radius: nonnegative (..., d, d) → (...)."""
    unit = largest_entry(M, (-2, -1))
    power, log_scale = M / unit, torch.zeros_like(unit)
    for _ in range(squarings):
        power = power @ power
        largest = largest_entry(power, (-2, -1))
        power, log_scale = power / largest, 2 * log_scale + largest.log()
    n = 2**squarings
    norm = _root(power.square().sum((-2, -1)), 2 * n)
    return norm * (log_scale / n).exp()[..., 0, 0] * unit[..., 0, 0]


def perron(M: Tensor) -> Tensor:
    """The right Perron vector of a nonnegative M, its largest entry 1: (..., d, d) → (..., d); no gradient.

    (I + M / max M)^(2^30) 1 by squaring: the identity keeps it from going round on a periodic graph.
    """
    M = M.detach()
    power = M / largest_entry(M, (-2, -1)) + torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    for _ in range(30):
        power = power @ power
        power = power / largest_entry(power, (-2, -1))
    vector = power.sum(-1)
    return vector / largest_entry(vector, -1)


def _root(x: Tensor, n: int) -> Tensor:
    """x^(1/n) with gradient 0 where x is 0."""
    zero = x == 0
    return torch.where(zero, 1, x).pow(1 / n).masked_fill(zero, 0)
