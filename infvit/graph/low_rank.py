"""Exact centralities of a token graph that is given by its factors: O(N d² + d³), without the N × N matrix."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from infvit.attention.kernel_infsa import perron
from infvit.attention.layer import without_autocast
from infvit.attention.sums import sum_dtype
from infvit.errors import UsageError, expect
from infvit.graph.dense import Perron

Side = Literal["left", "right"]


@dataclass(frozen=True, eq=False)
class LowRankGraph:
    """Ahat = U Wᵀ with nonnegative U and W, each (..., N, d), as `KernelInfSA.factors` returns them.

    Everything follows from two identities: F − I = (I − gamma U Wᵀ)⁻¹ − I = gamma U (I − gamma Wᵀ U)⁻¹ Wᵀ, and the
    eigenvalues of Wᵀ U, (d, d), are those of U Wᵀ that are not 0. The same quantities, conventions and meanings as the
    functions of `infvit.graph` for a dense Ahat; computed in float64 (float32 on devices without it). gamma: a number,
    or a tensor that broadcasts against the leading dimensions.

    Raises:
        UsageError: where a series is summed, if gamma times the spectral radius is 1 or more.
    """

    U: Tensor
    W: Tensor

    @property
    def empty(self) -> Tensor:
        """Whether all weights are 0: bool (...)."""
        return (self.U.sum(-2) * self.W.sum(-2)).sum(-1) == 0

    def katz(self, gamma: float | Tensor, direction: Literal["out", "in"] = "out") -> Tensor:
        """(F − I) 1, the discounted paths from each token, or "in": (F − I)ᵀ 1, those to it; (..., N)."""
        expect(direction in ("out", "in"), f"direction={direction!r}", "'out' or 'in'")
        return self._neumann(torch.ones_like(self.U[..., 0]), gamma, "right" if direction == "out" else "left")

    def visits(self, start: Tensor, gamma: float | Tensor) -> Tensor:
        """startᵀ F, the expected visits to each token of a walk that begins as `start` says: (..., N) → (..., N)."""
        return start + self._neumann(start, gamma, "left")

    def steps(self, gamma: float | Tensor) -> Tensor:
        """F 1, the expected number of steps until a walk from each token is absorbed: (..., N)."""
        return 1 + self.katz(gamma)

    def eigenvector_centrality(self, side: Side = "left") -> Perron:
        """The Perron vector of Ahat, W z with (Wᵀ U)ᵀ z = lambda z or "right": U y; uniform where Ahat is 0.

        By squaring a (d, d) matrix, without iterations over tokens; no gradient.
        """
        expect(side in ("left", "right"), f"side={side!r}", "'left' or 'right'")
        U, W = (t.detach() for t in self._sides(side))
        with without_autocast(U):
            inner = W.mT @ U
            known = inner.isfinite().all(-1).all(-1)[..., None]
            v = (U @ perron(inner.nan_to_num(0, 0, 0)).unsqueeze(-1)).squeeze(-1)
            total = v.sum(-1, keepdim=True)
            empty = (total == 0) | self.empty.unsqueeze(-1)
            v = torch.where(empty, 1 / v.shape[-1], v / torch.where(empty, 1, total)).where(known, torch.nan)
            Av = (U @ (W.mT @ v.unsqueeze(-1))).squeeze(-1)
            eigenvalue = Av.sum(-1)
            residual = (Av - eigenvalue.unsqueeze(-1) * v).abs().sum(-1) / torch.where(eigenvalue == 0, 1, eigenvalue)
        return Perron(v.to(self.U.dtype), eigenvalue.to(self.U.dtype), residual.to(self.U.dtype))

    def _sides(self, side: Side) -> tuple[Tensor, Tensor]:
        """The factors of Ahat, or those of its transpose, in `sum_dtype`."""
        U, W = self.U.to(sum_dtype(self.U)), self.W.to(sum_dtype(self.U))
        return (U, W) if side == "right" else (W, U)

    def _neumann(self, b: Tensor, gamma: float | Tensor, side: Side) -> Tensor:
        """(F − I) b, or (F − I)ᵀ b from the left: (..., N) → (..., N)."""
        U, W = self._sides(side)
        with without_autocast(U):
            discount = torch.as_tensor(gamma, dtype=U.dtype, device=U.device)[..., None, None]
            M = discount * (W.mT @ U)
            reach = W.mT @ b.to(U.dtype).unsqueeze(-1)
            solved = torch.linalg.solve_ex(torch.eye(M.shape[-1], dtype=M.dtype, device=M.device) - M, reach).result
            result = (discount * (U @ solved)).squeeze(-1)
            # Of a nonnegative b every term of the series is; a series that diverges would give finite, wrong numbers.
            if (result < -1e-9 * result.abs().amax(-1, keepdim=True)).any():
                raise UsageError(
                    f"gamma={gamma} is too large for this graph: gamma times the spectral radius reaches 1; lower it "
                    "below 1 / eigenvector_centrality().eigenvalue"
                )
            return result.to(self.U.dtype)
