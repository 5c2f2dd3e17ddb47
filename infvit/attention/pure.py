"""Pure InfSA: diffusion steps on the token graph, O(N²) time, O(N) memory (arXiv:2603.00175)."""

import torch
from torch import Tensor

from infvit.attention.diffusion import diffuse, rows_per_block
from infvit.attention.layer import EPS, DiscountedAttention, Masks
from infvit.errors import UsageError

DENSE_TOKENS = 512
"""Up to this many tokens the N × N matrix is held, which is faster than making it twice."""


class PureInfSA(DiscountedAttention):
    """Discounted hops over a nonnegative, Frobenius-normalised token graph.

        A    = relu(Q Kᵀ / d)                   affinities of one head, (N, N)
        Ahat = A / (‖A‖_F + eps)                ‖Ahat‖₂ ≤ ‖Ahat‖_F ≤ 1, so every Neumann series of gamma Ahat converges
        O    = Σ_{t=1..hops} (gamma Ahat)ᵗ V    hops = 1: O = gamma Ahat V

    Above `DENSE_TOKENS` tokens the matrix is never held: blocks of rows, made anew in the backward pass. (With
    `attn_drop` in training it is, because a dropped weight must be the same one in both passes.) A head whose scores
    are all ≤ 0 gives exactly 0 and gradient 0.

    Args:
        hops: length of the longest paths that are summed; each hop costs one more product with A.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        gamma: float = 0.95,
        hops: int = 1,
        learn_gamma: bool = True,
        gamma_per_head: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop, gamma, learn_gamma, gamma_per_head)
        if hops != int(hops) or hops < 1:
            raise UsageError(f"hops={hops} is not a number of hops: expected a whole number from 1")
        self.hops = int(hops)

    def attend(self, x: Tensor, masks: Masks) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        Q, K, V = self.heads(x)
        dropping = self.training and self.attn_drop.p > 0
        dense = x.shape[1] <= DENSE_TOKENS or dropping
        return self.merge(self._dense(Q, K, V) if dense else self._blocks(Q, K, V))

    def weigh(self, x: Tensor, masks: Masks) -> Tensor:
        """Ahat, without gamma: (B, N, D) → (B, H, N, N)."""
        Q, K, _ = self.heads(x)
        A, norm = self._affinities(Q, K)
        return (A / (norm + EPS)).to(A.dtype)

    def _dense(self, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        A, norm = self._affinities(Q, K)
        # gamma and the norm are one number per head, so they scale the (N, d) result and never the (N, N) matrix.
        scale = self.gamma[:, None, None] / (norm + EPS)
        A = self.attn_drop(A)
        O = (scale * (A @ V)).to(V.dtype)  # noqa: E741
        for _ in range(self.hops - 1):
            O = (scale * (A @ (V + O))).to(V.dtype)  # noqa: E741
        return O

    def _blocks(self, Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        B, H, N, _ = Q.shape
        rows = rows_per_block(B, H, N)
        Q, K, W = (t.flatten(0, 1).contiguous() for t in (Q / self.head_dim, K, V))
        U, squares = diffuse(Q, K, W, rows)
        # The root of 0 has no gradient: a head that is off keeps norm 0 and passes none.
        off = squares == 0
        norm = torch.where(off, 0, torch.where(off, 1, squares).sqrt())
        scale = self.gamma[:, None, None] / (norm.view(B, H, 1, 1) + EPS)
        O = (scale * U.view_as(V)).to(V.dtype)  # noqa: E741
        for _ in range(self.hops - 1):
            U, _squares = diffuse(Q, K, (V + O).flatten(0, 1).contiguous(), rows)
            O = (scale * U.view_as(V)).to(V.dtype)  # noqa: E741
        return O

    def _affinities(self, Q: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        """A (B, H, N, N) and its Frobenius norm (B, H, 1, 1), the sum in float32 or better."""
        A = ((Q / self.head_dim) @ K.mT).relu()
        precision = torch.promote_types(A.dtype, torch.float32)
        return A, torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True, dtype=precision)
