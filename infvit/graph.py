"""Numbers of a token graph: Katz, eigenvector centrality, PageRank, the absorbing chain (arXiv:2603.00175).

Every function takes a nonnegative matrix Ahat (..., N, N), where Ahat_ij is the weight of the step from token i to
token j, and works on each matrix of the leading dimensions (images, heads) alone. The arithmetic is done in float32
or better, also under autocast. Ahat may be all zero, disconnected or 1 × 1; NaN in one matrix stays in its result.

All of it needs the N × N matrix in memory; what solves a linear system takes O(N³) time per matrix.
"""

import warnings
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from infvit.attention.layer import Attention, without_autocast
from infvit.attention.pure import affinities
from infvit.attention.tokens import precise
from infvit.errors import UsageError


class Perron(NamedTuple):
    """The dominant eigenpair of a nonnegative matrix.

    Attributes:
        vector: (..., N), nonnegative, summing to 1.
        eigenvalue: (...), the spectral radius.
        residual: (...), ‖A v − λ v‖₁ / λ, what is left of the eigenvalue equation (0 where λ is 0).
    """

    vector: Tensor
    eigenvalue: Tensor
    residual: Tensor


class PerronCosine(NamedTuple):
    """The cosine of a layer's weights with the left and with the right Perron vector, each (B, H), in [0, 1]."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class AbsorbingChain:
    """The Markov chain whose transient states are the tokens, made by `absorbing_chain` (arXiv:2603.00175).

    Attributes:
        M: the transient matrix gamma Ahat, (..., N, N).
        R: the probability of absorption in a step from each token, 1 − Σ_j M_ij, (..., N).
        F: the fundamental matrix (I − M)⁻¹ = I + M + M² + ..., (..., N, N).
        neumann_kernel: F − I, (..., N, N), solved for itself: no digits cancel where M is small.
    """

    M: Tensor
    R: Tensor
    F: Tensor
    neumann_kernel: Tensor

    @property
    def visits(self) -> Tensor:
        """F_ij, the expected number of visits to j of a walk from i, its start counted: (..., N, N)."""
        return self.F

    @property
    def steps(self) -> Tensor:
        """F 1, the expected number of steps until a walk from i is absorbed: (..., N)."""
        return self.F.sum(-1)

    @property
    def overflow(self) -> Tensor:
        """Which rows of M sum to more than 1, so that R < 0 and they are no probabilities: bool (..., N)."""
        return self.R < 0


def katz(Ahat: Tensor, gamma: float | Tensor, direction: Literal["out", "in"] = "out") -> Tensor:
    """Katz centrality: the discounted number of paths that leave or enter each token (arXiv:2603.00175).

        out: c = (F − I) 1          in: c = (F − I)ᵀ 1          F = (I − gamma Ahat)⁻¹

    networkx counts the empty path too: its incoming Katz centrality with alpha = gamma, beta = 1, not normalised,
    is c + 1. Differentiable in Ahat and gamma. A token without edges, like all of an all-zero Ahat, has 0.

    Args:
        Ahat: nonnegative, (..., N, N).
        gamma: the discount, nonnegative, a number or a tensor that broadcasts against the leading dimensions of Ahat.
        direction: "out" for the paths that leave a token, "in" for those that arrive (how much it is visited).

    Returns:
        (..., N), nonnegative.

    Raises:
        ValueError: if a shape or dtype does not fit, an entry is negative, or the series diverges (gamma times the
            spectral radius is 1 or more).
    """
    if direction not in ("out", "in"):
        raise UsageError(f"direction={direction!r} is unknown: choose 'out' or 'in'")
    M = _transient(Ahat, gamma)
    M = M if direction == "out" else M.mT
    return _neumann(M, M.sum(-1, keepdim=True)).squeeze(-1)


def absorbing_chain(Ahat: Tensor, gamma: float | Tensor) -> AbsorbingChain:
    """Reads M = gamma Ahat as the transient part of an absorbing Markov chain over the tokens (arXiv:2603.00175).

    Differentiable in Ahat and gamma. Where a row of M sums to more than 1 it is left as it is: its R is negative,
    `overflow` marks it, a RuntimeWarning says so, and visits and steps are then path weights, not expectations. The
    Frobenius norm of Ahat bounds the spectral radius but not the row sums, so Pure InfSA can have such rows.
    An all-zero Ahat absorbs at once: R = 1, F = I, steps = 1.

    Takes and raises as `katz`.
    """
    M = _transient(Ahat, gamma)
    kernel = _neumann(M, M)
    chain = AbsorbingChain(M, 1 - M.sum(-1), kernel + torch.eye(M.shape[-1], dtype=M.dtype, device=M.device), kernel)
    if chain.overflow.any():
        # The same words every time, so that Python's default filter says it once per place.
        warnings.warn(
            "rows of gamma Ahat sum to more than 1: their absorption R is negative, see AbsorbingChain.overflow",
            RuntimeWarning,
            stacklevel=2,
        )
    return chain


def pagerank(Ahat: Tensor, damping: float = 0.85) -> Tensor:
    """PageRank: where a walk on Ahat is found in the long run, if it restarts anywhere with chance 1 − damping.

        p = damping Pᵀ p + (1 − damping) 1 / N          P = Ahat with rows summing to 1

    As in networkx, a row of zeros counts as uniform; so an all-zero Ahat gives 1 / N everywhere. Solved directly,
    differentiable in Ahat (a row of zeros gets gradient 0).

    Args:
        Ahat: nonnegative, (..., N, N).
        damping: the chance of a step along the graph, 0 ≤ damping < 1.

    Returns:
        (..., N), positive, summing to 1.

    Raises:
        ValueError: if a shape or dtype does not fit, an entry is negative, or damping is out of range.
    """
    if not 0 <= damping < 1:
        raise UsageError(f"damping={damping} is out of range: expected 0 <= damping < 1")
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

    A periodic graph (a bipartite one, say) has eigenvalues −λ or λ e^{iθ} beside λ, and plain power iteration circles
    for ever. Iterating Ahat + μ I keeps the eigenvectors and leaves λ + μ alone in front; μ is half the current
    estimate of λ, so it also vanishes with λ on a graph without cycles, where a fixed μ would converge like 1 / t.

    Where several components share the largest eigenvalue the vector is not unique: this is the one reached from the
    uniform vector. An all-zero Ahat gives the uniform vector, eigenvalue 0, residual 0; a graph without cycles has
    eigenvalue 0, found to about `tolerance` of the largest weights.

    Differentiable by implicit differentiation (O(N³), only where Ahat requires a gradient); directions that an
    eigenvalue within `tolerance` of λ leaves undetermined get no gradient.

    Args:
        Ahat: nonnegative, (..., N, N).
        side: "left" or "right".
        tolerance: the residual at which a matrix counts as done; float32 reaches about 1e-6.
        max_iterations: where to stop otherwise, with a RuntimeWarning; the residual tells which matrices.

    Raises:
        ValueError: if a shape or dtype does not fit, an entry is negative, or an option is out of range.
    """
    if side not in ("left", "right"):
        raise UsageError(f"side={side!r} is unknown: choose 'left' or 'right'")
    if not tolerance > 0 or max_iterations < 1:
        raise UsageError(f"tolerance={tolerance} and max_iterations={max_iterations} must be positive")
    A = _checked(Ahat)
    A = A if side == "right" else A.mT
    with without_autocast(A):
        with torch.no_grad():
            v, eigenvalue, residual = _iterated(A, tolerance, max_iterations)
            if (residual > tolerance).any():
                warnings.warn(
                    "power iteration stopped at max_iterations, see Perron.residual", RuntimeWarning, stacklevel=2
                )
            v = torch.where(eigenvalue.isfinite(), v, torch.nan)
        if torch.is_grad_enabled() and A.requires_grad:
            v, eigenvalue = _implicit(A, v, eigenvalue, tolerance)
    return Perron(v.squeeze(-1), eigenvalue[..., 0, 0], residual[..., 0, 0])


def spectral_radius(Ahat: Tensor, tolerance: float = 1e-6, max_iterations: int = 1000) -> Tensor:
    """The largest eigenvalue of Ahat, (..., N, N) → (...): what gamma times must stay below 1 for F to exist.

    Takes, raises and differentiates as `eigenvector_centrality`.
    """
    return eigenvector_centrality(Ahat, "right", tolerance, max_iterations).eigenvalue


def ahat(layer: Attention, x: Tensor) -> Tensor:
    """What a layer weighs tokens with, as a token graph: (B, N, D) → (B, H, N, N).

    A layer with a matrix of weights (Pure InfSA, softmax) gives that matrix. Linear-InfSA has one weight per token
    and gives the quadratic operator made of the same Q and K, which its weights approximate an eigenvector of:

        A = relu(Q Kᵀ / d)          Ahat = A / (‖A‖_F + eps)

    Raises:
        ValueError: if x does not fit the layer.
    """
    weights = layer.weights(x)
    return weights if weights.ndim == 4 else _quadratic(layer, x)


@torch.no_grad()
def linear_vs_perron(layer: Attention, x: Tensor, tolerance: float = 1e-6, max_iterations: int = 1000) -> PerronCosine:
    """How near Linear-InfSA's weights a come to the Perron vectors of the quadratic operator `ahat(layer, x)`.

    The paper reports a cosine of 0.985 with the principal eigenvector (arXiv:2603.00175). A head that is off (its
    weights a are all 0, as they must be where its A is) has cosine 0. A measurement: it carries no gradient.

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
    # The cosine knows no scale, but its squares do: weights of 1e-30 would look like a head that is off.
    peak = a.amax(-1, keepdim=True)
    a = a / torch.where(peak == 0, 1, peak)
    return PerronCosine(torch.cosine_similarity(a, left, dim=-1), torch.cosine_similarity(a, right, dim=-1))


def _quadratic(layer: Attention, x: Tensor) -> Tensor:
    """A / (‖A‖_F + eps) with A = relu(Q Kᵀ / d) of a layer's Q and K, in float32 or better: (B, H, N, N)."""
    Q, K, _ = layer.heads(x)
    with without_autocast(x):
        A, norm = affinities(torch.stack((precise(Q), precise(K)), 2))
        return A / norm


def _checked(Ahat: Tensor) -> Tensor:
    """Ahat in float32 or better, once it is known to be a nonnegative (..., N, N)."""
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
    if (discount < 0).any():
        raise UsageError(f"gamma={gamma} has negative values, expected discounts >= 0")
    try:
        torch.broadcast_shapes(discount.shape, A.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"gamma of shape {tuple(discount.shape)} does not broadcast over the leading dimensions of "
            f"Ahat of shape {tuple(A.shape)}: expected {tuple(A.shape[:-2])} or less"
        ) from None
    return discount[..., None, None] * A


def _neumann(M: Tensor, B: Tensor) -> Tensor:
    """(M + M² + ...) applied to what M made B of, F B by a linear solve: (..., N, N), (..., N, k) → (..., N, k)."""
    I_M = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device) - M
    # Against M 1 the solution is F 1 − 1. For M >= 0 the series converges exactly if the solved F 1 is positive
    # (I − M is then an M-matrix): a divergent series would otherwise give finite, plausible, wrong numbers.
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


def _iterated(A: Tensor, tolerance: float, max_iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """Power iteration: (..., N, N) → v (..., N, 1), its eigenvalue and residual, both (..., 1, 1)."""
    leading, A = A.shape[:-2], A.reshape(-1, *A.shape[-2:])
    v = A.new_full((*A.shape[:-1], 1), 1 / A.shape[-1])
    Av, eigenvalue, residual = _residual(A, v)
    found = [v.clone(), eigenvalue.clone(), residual.clone()]
    at = torch.arange(len(A), device=A.device)
    for _ in range(max_iterations):
        # Done matrices stand still, so that the batch they are in does not change them. NaN is done.
        going = residual > tolerance
        if 2 * int(going.sum()) <= len(at):  # few that converge slowly do not keep the others busy
            for of_all, of_some in zip(found, (v, eigenvalue, residual), strict=True):
                of_all[at] = of_some
            A, v, Av, eigenvalue, residual, at, going = (
                t[going.flatten()] for t in (A, v, Av, eigenvalue, residual, at, going)
            )
        if not len(at):
            break
        v = torch.where(going, Av / eigenvalue + v / 2, v)
        v = v / v.sum(-2, keepdim=True)
        Av, eigenvalue, residual = _residual(A, v)
    for of_all, of_some in zip(found, (v, eigenvalue, residual), strict=True):
        of_all[at] = of_some
    v, eigenvalue, residual = (t.reshape(*leading, *t.shape[1:]) for t in found)
    return v, eigenvalue, residual


def _implicit(A: Tensor, v: Tensor, eigenvalue: Tensor, tolerance: float) -> tuple[Tensor, Tensor]:
    """v and λ with the gradients that A v = λ v, 1ᵀ v = 1 give them: a Newton step whose value is dropped.

    The unknowns are δv and δλ / λ, which makes the system free of the scale of A:

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
        # The pseudo-inverse, because J is singular where λ is not simple; NaN would stop the whole batch.
        rtol = max(tolerance, N * torch.finfo(A.dtype).eps)
        inverse = torch.linalg.pinv(J.nan_to_num(0, 0, 0), rtol=rtol)[..., :N]
    step = -inverse @ (A @ v / scale)
    step = step - step.detach()
    return v + step[..., :N, :], eigenvalue + eigenvalue * step[..., N:, :]
