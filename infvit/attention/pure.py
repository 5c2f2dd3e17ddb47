"""Pure InfSA: one diffusion step on the token graph, O(N²) (arXiv:2603.00175)."""

import torch
from torch import Tensor

from infvit.attention.layer import EPS, DiscountedAttention


class PureInfSA(DiscountedAttention):
    """One discounted hop over a nonnegative, Frobenius-normalised token graph.

        A    = relu(Q Kᵀ / d)            affinities of one head, (N, N)
        Ahat = A / (‖A‖_F + eps)         ‖Ahat‖₂ ≤ ‖Ahat‖_F ≤ 1, so every Neumann series of gamma Ahat converges
        O    = gamma Ahat V

    A head whose scores are all ≤ 0 gives exactly 0 and gradient 0.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        Q, K, V = self.heads(x)
        A, norm = self._affinities(Q, K)
        # gamma and the norm are one number per head, so they scale the (N, d) result and never the (N, N) matrix.
        scale = self.gamma[:, None, None] / (norm + EPS)
        return self.merge((scale * (self.attn_drop(A) @ V)).to(V.dtype))

    def weights(self, x: Tensor) -> Tensor:
        """Ahat, without gamma: (B, N, D) → (B, H, N, N)."""
        Q, K, _ = self.heads(x)
        A, norm = self._affinities(Q, K)
        return (A / (norm + EPS)).to(A.dtype)

    def _affinities(self, Q: Tensor, K: Tensor) -> tuple[Tensor, Tensor]:
        """A (B, H, N, N) and its Frobenius norm (B, H, 1, 1), the sum in float32 or better."""
        A = ((Q / self.head_dim) @ K.mT).relu()
        precision = torch.promote_types(A.dtype, torch.float32)
        return A, torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True, dtype=precision)
