"""Centralities of a token graph: Katz, eigenvector centrality, PageRank, the absorbing chain (arXiv:2603.00175).

Every function takes a nonnegative matrix Ahat (..., N, N), where Ahat_ij is the weight of the edge from token i to
token j, and treats each matrix of the leading dimensions (images, heads) separately, in float32 or better, also under
autocast. Ahat may be all zero, disconnected or 1 × 1; NaN in one matrix stays in its result.

The N × N matrix is in memory; functions that solve a linear system take O(N³) time per matrix.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from infvit.attention.layer import Attention, without_autocast
from infvit.attention.pure import affinities
from infvit.attention.tokens import precise
from infvit.errors import UsageError, expect


class Perron(NamedTuple):
    """The dominant eigenpair of a nonnegative matrix.

    Attributes:
        vector: (..., N), nonnegative, summing to 1.
        eigenvalue: (...), the spectral radius.
        residual: (...), ‖A v − λ v‖₁ / λ (0 where λ is 0).
    """

    vector: Tensor
    eigenvalue: Tensor
    residual: Tensor


class PerronCosine(NamedTuple):
    """The cosine of a layer's weights with the left and the right Perron vector, each (B, H), in [0, 1]."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class AbsorbingChain:
    """The Markov chain whose transient states are the tokens, from `absorbing_chain` (arXiv:2603.00175).

    Attributes:
        M: the transient matrix gamma Ahat, (..., N, N).
        R: the probability of absorption in the step from each token, 1 − Σ_j M_ij, (..., N).
        F: the fundamental matrix (I − M)⁻¹ = I + M + M² + ..., (..., N, N): F_ij is the expected number of visits to j
            of a walk from i, its start included.
        neumann_kernel: F − I, (..., N, N), solved for directly, without cancellation where M is small.
    """

    M: Tensor
    R: Tensor
    F: Tensor
    neumann_kernel: Tensor

    @property
    def steps(self) -> Tensor:
        """F 1, the expected number of steps until a walk from i is absorbed: (..., N)."""
        return self.F.sum(-1)

    @property
    def overflow(self) -> Tensor:
        """Which rows of M sum to more than 1, so that R < 0 and they are not probabilities: bool (..., N)."""
        return self.R < 0


def katz(Ahat: Tensor, gamma: float | Tensor, direction: Literal["out", "in"] = "out") -> Tensor:
    """Katz centrality: the discounted number of paths from or to each token (arXiv:2603.00175).

        out: c = (F − I) 1          in: c = (F − I)ᵀ 1          F = (I − gamma Ahat)⁻¹

    networkx includes the empty path: its incoming Katz centrality with alpha = gamma, beta = 1, not normalised, is
    c + 1. Differentiable in Ahat and gamma. A token without edges has 0.

    Args:
        Ahat: nonnegative, (..., N, N).
        gamma: the discount, nonnegative, a number or a tensor that broadcasts against the leading dimensions of Ahat.
        direction: "out" for paths from a token, "in" for paths to it (how much it is visited).

    Returns:
        (..., N), nonnegative.

    Raises:
        ValueError: if a shape or dtype does not fit, an entry is negative, or the series diverges (gamma times the
            spectral radius is 1 or more).
    """
    expect(direction in ("out", "in"), f"direction={direction!r}", "'out' or 'in'")
    M = _transient(Ahat, gamma)
    M = M if direction == "out" else M.mT
    return _neumann(M, M.sum(-1, keepdim=True)).squeeze(-1)


def absorbing_chain(Ahat: Tensor, gamma: float | Tensor) -> AbsorbingChain:
    """Reads M = gamma Ahat as the transient part of an absorbing Markov chain over the tokens (arXiv:2603.00175).

    Differentiable in Ahat and gamma. A row of M that sums to more than 1 is kept: its R is negative, `overflow` marks
    it, a RuntimeWarning reports it, and visits and steps are path weights instead of expectations. Pure InfSA can have
    such rows, because the Frobenius norm of Ahat bounds the spectral radius but not the row sums. An all-zero Ahat
    absorbs at once: R = 1, F = I, steps = 1.

    Takes and raises as `katz`.
    """
    M = _transient(Ahat, gamma)
    kernel = _neumann(M, M)
    chain = AbsorbingChain(M, 1 - M.sum(-1), kernel + torch.eye(M.shape[-1], dtype=M.dtype, device=M.device), kernel)
    if chain.overflow.any():
        # A constant message, so that Python's default filter shows it once per location.
        warnings.warn(
            "rows of gamma Ahat sum to more than 1: their absorption R is negative, see AbsorbingChain.overflow",
            RuntimeWarning,
            stacklevel=2,
        )
    return chain


def pagerank(Ahat: Tensor, damping: float = 0.85) -> Tensor:
    """PageRank: the long-run distribution of a walk on Ahat that restarts anywhere with probability 1 − damping.

        p = damping Pᵀ p + (1 − damping) 1 / N          P = Ahat with rows summing to 1

    As in networkx, a row of zeros counts as uniform. Solved directly, differentiable in Ahat (a row of zeros gets
    gradient 0).

    Args:
        Ahat: nonnegative, (..., N, N).
        damping: the probability of a step along the graph, 0 ≤ damping < 1.

    Returns:
        (..., N), positive, summing to 1.

    Raises:
        ValueError: if a shape or dtype does not fit, an entry is negative, or damping is out of range.
    """
    expect(0 <= damping < 1, f"damping={damping}", "0 <= damping < 1")
    A = _checked(Ahat)
    N = A.shape[-1]
    total = A.sum(-1, keepdim=True)
    dangling = total == 0
    P = torch.where(dangling, 1 / N, A / torch.where(dangling, 1, total))
    restart = torch.full_like(total, (1 - damping) / N)
    p = torch.linalg.solve_ex(torch.eye(N, dtype=A.dtype, device=A.device) - damping * P.mT, restart).result
    return p.squeeze(-1)


def eigenvector_centrality(
    Ahat: Tensor, side: Literal["left", "right"] = "left", tolerance: float = 1e-6, max_iterations: int = 1000
) -> Perron:
    """The Perron vector of Ahat by power iteration: left vᵀ Ahat = λ vᵀ (being pointed at), or right Ahat v = λ v.

    On a periodic graph (such as a bipartite one) −λ or λ e^{iθ} are eigenvalues too and plain power iteration does not
    converge. Iterating Ahat + μ I keeps the eigenvectors and makes λ + μ the only dominant eigenvalue. μ is half the
    current estimate of λ and vanishes with it on a graph without cycles, where a fixed μ would converge like 1 / t.

    If several components share the largest eigenvalue, the vector is the one reached from the uniform vector. An
    all-zero Ahat gives the uniform vector, eigenvalue 0, residual 0; a graph without cycles has eigenvalue 0, accurate
    to about `tolerance` of the largest weights.

    Differentiable by implicit differentiation (O(N³), only if Ahat requires a gradient); directions that are
    undetermined because of another eigenvalue within `tolerance` of λ get no gradient.

    Args:
        Ahat: nonnegative, (..., N, N).
        side: "left" or "right".
        tolerance: the residual at which a matrix has converged; float32 reaches about 1e-6.
        max_iterations: limit, with a RuntimeWarning; the residual shows which matrices have not converged.

    Raises:
        ValueError: if a shape or dtype does not fit, an entry is negative, or an option is out of range.
    """
    expect(side in ("left", "right"), f"side={side!r}", "'left' or 'right'")
    expect(
        tolerance > 0 and max_iterations >= 1, f"tolerance={tolerance}, max_iterations={max_iterations}", "both above 0"
    )
    A = _checked(Ahat)
    A = A if side == "right" else A.mT
    with without_autocast(A):
        with torch.no_grad():
            flat = A.reshape(-1, *A.shape[-2:])
            start = A.new_full((*flat.shape[:-1], 1), 1 / A.shape[-1])
            found = _iterated(flat, start, tolerance, max_iterations)
            v, eigenvalue, residual = (t.reshape(*A.shape[:-2], *t.shape[1:]) for t in found)
            if (residual > tolerance).any():
                line = "power iteration stopped at max_iterations: the result is approximate, see Perron.residual"
                warnings.warn(line, RuntimeWarning, stacklevel=2)
            v = torch.where(eigenvalue.isfinite(), v, torch.nan)
        if torch.is_grad_enabled() and A.requires_grad:
            v, eigenvalue = _implicit(A, v, eigenvalue, tolerance)
    return Perron(v.squeeze(-1), eigenvalue[..., 0, 0], residual[..., 0, 0])


def spectral_radius(Ahat: Tensor, tolerance: float = 1e-6, max_iterations: int = 1000) -> Tensor:
    """The largest eigenvalue of Ahat, (..., N, N) → (...); F exists if gamma times it is below 1.

    Takes, raises and differentiates as `eigenvector_centrality`.
    """
    return eigenvector_centrality(Ahat, "right", tolerance, max_iterations).eigenvalue


def ahat(layer: Attention, x: Tensor) -> Tensor:
    """The token graph of a layer: (B, N, D) → (B, H, N, N).

    The weights of a layer that has a matrix of them (Pure InfSA, softmax). For Linear-InfSA, which has one weight per
    token, the quadratic operator of the same Q and K, one of whose eigenvectors these weights approximate:

        A = relu(Q Kᵀ / d)          Ahat = A / (‖A‖_F + eps)

    Raises:
        ValueError: if x does not fit the layer.
    """
    weights = layer.weights(x)
    return weights if weights.ndim == 4 else _quadratic(layer, x)


@torch.no_grad()
def linear_vs_perron(layer: Attention, x: Tensor, tolerance: float = 1e-6, max_iterations: int = 1000) -> PerronCosine:
    """The cosine of Linear-InfSA's weights a with the Perron vectors of the quadratic operator `ahat(layer, x)`.

    The paper reports 0.985 with the principal eigenvector (arXiv:2603.00175). A head that is off (all weights 0) has
    cosine 0. Not differentiable.

    Args:
        layer: a LinearInfSA layer of H heads.
        x: tokens, (B, N, D).
        tolerance, max_iterations: of the power iteration, see `eigenvector_centrality`.

    Raises:
        ValueError: if x does not fit the layer, or the layer has no single weight per token.
    """
    a = layer.weights(x)
    if a.ndim != 3:
        raise UsageError(
            f"layer is {type(layer).__name__} with weights of shape {tuple(a.shape)}, expected LinearInfSA's (B, H, N)"
        )
    Ahat = _quadratic(layer, x)
    left = eigenvector_centrality(Ahat, "left", tolerance, max_iterations).vector
    right = eigenvector_centrality(Ahat, "right", tolerance, max_iterations).vector
    return perron_cosine(a, left, right)


def perron_cosine(a: Tensor, left: Tensor, right: Tensor) -> PerronCosine:
    """The cosine of weights a with Perron vectors, each (B, H, N); 0 for a head that is off."""
    # Rescaled, because squares of weights of 1e-30 underflow and would look like a head that is off.
    peak = a.amax(-1, keepdim=True)
    a = a / torch.where(peak == 0, 1, peak)
    return PerronCosine(torch.cosine_similarity(a, left, dim=-1), torch.cosine_similarity(a, right, dim=-1))


def _quadratic(layer: Attention, x: Tensor) -> Tensor:
    """A / (‖A‖_F + eps) with A = relu(Q Kᵀ / d) of a layer's Q and K, in float32 or better: (B, H, N, N)."""
    Q, K, _ = layer.heads(x)
    with without_autocast(x):
        A, norm = affinities(torch.stack((precise(Q), precise(K)), 2).transpose(1, 3))
        return A / norm


def _checked(Ahat: Tensor) -> Tensor:
    """Ahat in float32 or better, after checking that it is a nonnegative (..., N, N)."""
    if Ahat.ndim < 2 or Ahat.shape[-1] != Ahat.shape[-2] or Ahat.shape[-1] == 0:
        raise ValueError(f"Ahat has shape {tuple(Ahat.shape)}, expected (..., N, N) with N >= 1")
    if not Ahat.is_floating_point():
        raise ValueError(f"Ahat has dtype {Ahat.dtype}, expected a real floating one: pass Ahat.float()")
    if (Ahat < 0).any():
        raise ValueError(f"Ahat of shape {tuple(Ahat.shape)} has negative entries, expected weights >= 0")
    return precise(Ahat)


def _transient(Ahat: Tensor, gamma: float | Tensor) -> Tensor:
    """M = gamma Ahat, gamma broadcast over the leading dimensions: (..., N, N)."""
    A = _checked(Ahat)
    discount = torch.as_tensor(gamma, dtype=A.dtype, device=A.device)
    expect(not (discount < 0).any(), f"gamma={gamma}", "discounts >= 0")
    try:
        torch.broadcast_shapes(discount.shape, A.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"gamma of shape {tuple(discount.shape)} does not broadcast over the leading dimensions of "
            f"Ahat of shape {tuple(A.shape)}: expected {tuple(A.shape[:-2])} or less"
        ) from None
    return discount[..., None, None] * A


def _neumann(M: Tensor, B: Tensor) -> Tensor:
    """F B = (I − M)⁻¹ B by a linear solve: (..., N, N), (..., N, k) → (..., N, k)."""
    I_M = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device) - M
    # The rows of B sum to M 1, so those of the solution to F 1 − 1. For M >= 0 the series converges if and only if the
    # solved F 1 is positive (I − M is then an M-matrix); a divergent series would give finite but wrong numbers.
    solved, info = torch.linalg.solve_ex(I_M, B)
    with torch.no_grad():
        steps = 1 + solved.sum(-1)
        diverges = ((steps <= 0).any(-1) | (info != 0)) & M.isfinite().all(-1).all(-1)
        if diverges.any():
            raise UsageError(
                f"gamma is too large for Ahat of shape {tuple(M.shape)}: gamma times the spectral radius reaches 1 in "
                f"{int(diverges.sum())} of {diverges.numel()} matrices; lower gamma below 1 / spectral_radius(Ahat)"
            )
    return solved


def _residual(A: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A v, the eigenvalue and the relative residual of v (..., N, 1) that sums to 1."""
    Av = A @ v
    eigenvalue = Av.sum(-2, keepdim=True)
    residual = (Av - eigenvalue * v).abs().sum(-2, keepdim=True)
    return Av, eigenvalue, torch.where(eigenvalue == 0, 0, residual / eigenvalue)


def _iterated(A: Tensor, v: Tensor, tolerance: float, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Power iteration from v: (M, N, N), (M, N, 1) → v (M, N, 1), its eigenvalue and residual, both (M, 1, 1)."""
    Av, eigenvalue, residual = _residual(A, v)
    for left in range(iterations, 0, -1):
        # Converged matrices are no longer updated, so that they do not depend on their batch. NaN counts as converged.
        going = residual > tolerance
        if 2 * int(going.sum()) <= len(A):  # the others continue without them
            rest = going.flatten()
            if rest.any():
                v[rest], eigenvalue[rest], residual[rest] = _iterated(A[rest], v[rest], tolerance, left)
            break
        v = torch.where(going, Av / eigenvalue + v / 2, v)
        v = v / v.sum(-2, keepdim=True)
        Av, eigenvalue, residual = _residual(A, v)
    return v, eigenvalue, residual


def _implicit(A: Tensor, v: Tensor, eigenvalue: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """v and λ with the gradients implied by A v = λ v, 1ᵀ v = 1: a Newton step whose value is subtracted.

    The unknowns are δv and δλ / λ, which makes the system scale-invariant:

        [ A / λ − I   −v ] [ δv     ]   [ −δA v / λ ]
        [ 1ᵀ           0 ] [ δλ / λ ] = [  0        ]
    """
    N = A.shape[-1]
    scale = torch.where(eigenvalue == 0, 1, eigenvalue)
    with torch.no_grad():
        J = torch.zeros(*A.shape[:-2], N + 1, N + 1, dtype=A.dtype, device=A.device)
        J[..., :N, :N] = A / scale - torch.eye(N, dtype=A.dtype, device=A.device)
        J[..., :N, N:] = -v
        J[..., N, :N] = 1
        # Pseudo-inverse, because J is singular if λ is not simple; NaN would fail the whole batch.
        rtol = max(tolerance, N * torch.finfo(A.dtype).eps)
        inverse = torch.linalg.pinv(J.nan_to_num(0, 0, 0), rtol=rtol)[..., :N]
    step = -inverse @ (A @ v / scale)
    step = step - step.detach()
    return v + step[..., :N, :], eigenvalue + eigenvalue * step[..., N:, :]
