"""Linear-InfSA: O(N) time and a state of fixed size, by exact reassociation (arXiv:2603.00175)."""

import torch
from torch import Tensor
from torch.nn import functional as F

from infvit.attention.layer import EPS, DiscountedAttention, Masks, without_autocast


class LinearInfSA(DiscountedAttention):
    """Every token receives one pooled vector, weighted by an approximation of the principal eigenvector of A.

        alpha_i = ‖Q_i‖ / (Σ_j ‖Q_j‖ + eps)
        qbar    = Σ_i alpha_i Q_i                                        (d)
        a_j     = relu(qbar · K_j / d) / (Σ_l relu(qbar · K_l / d) + eps)
        O_i     = gamma Σ_j a_j V_j                                      the same for all i

    What runs is the same function with the sums moved inside the projections (u_h = Wk_hᵀ qbar_h):

        qbar      = Wq Σ alpha_i x_i + (Σ alpha_i) bq
        qbar·K_j  = u · x_j + qbar · bk
        Σ a_j V_j = Wv Σ a_j x_j + (Σ a_j) bv

    so both passes are one weighted sum of the tokens, and of the per-token projections only Q is formed, for its
    norms. Sums over tokens are accumulated in float32 or better, also under autocast: at 331,776 tokens a weight
    is about 3e-6, which float16 can hardly write and bfloat16 cannot add.

    A head whose scores are all ≤ 0 gives exactly 0 and gradient 0.
    """

    def attend(self, x: Tensor, masks: Masks) -> Tensor:
        """(B, N, D) → (B, N, D); the result is one row per image, expanded over the tokens without a copy."""
        B, N, D = x.shape
        a = self.attn_drop(self._weights(x))
        with without_autocast(x):
            _, _, Wv = self._per_head(self.qkv.weight, a.dtype)
            pooled = torch.einsum("bhD,hdD->bhd", a @ x.to(a.dtype), Wv)
            if self.qkv.bias is not None:
                pooled = pooled + a.sum(-1, keepdim=True) * self._per_head(self.qkv.bias, a.dtype)[2]
            pooled = (self.gamma[:, None] * pooled).reshape(B, 1, D).to(x.dtype)
        return self.proj_drop(self.proj(pooled).expand(B, N, D))

    def weigh(self, x: Tensor, masks: Masks) -> Tensor:
        """The weight a of each token, summing to 1 unless the head is off: (B, N, D) → (B, H, N)."""
        return self._weights(x)

    def _weights(self, x: Tensor) -> Tensor:
        D, H, d, bias = self.dim, self.num_heads, self.head_dim, self.qkv.bias
        B, N, _ = x.shape
        Q = F.linear(x, self.qkv.weight[:D], None if bias is None else bias[:D]).view(B, N, H, d)
        precision = torch.promote_types(x.dtype, torch.float32)
        with without_autocast(x):
            x = x.to(precision)
            Wq, Wk, _ = self._per_head(self.qkv.weight, precision)
            norms = torch.linalg.vector_norm(Q, dim=-1, dtype=precision).mT  # (B, H, N)
            alpha = norms / (norms.sum(-1, keepdim=True) + EPS)
            qbar = torch.einsum("bhD,hdD->bhd", alpha @ x, Wq)
            if bias is not None:
                bq, bk, _ = self._per_head(bias, precision)
                qbar = qbar + alpha.sum(-1, keepdim=True) * bq
            scores = torch.einsum("bhd,hdD->bhD", qbar, Wk) @ x.mT
            if bias is not None:
                scores = scores + (qbar * bk).sum(-1, keepdim=True)
            scores = (scores / d).relu()
            return scores / (scores.sum(-1, keepdim=True) + EPS)

    def _per_head(self, packed: Tensor, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """q, k and v parts of a packed weight (3 D, D) or bias (3 D,), each (H, d, D) or (H, d)."""
        return packed.to(dtype).view(3, self.num_heads, self.head_dim, *packed.shape[1:]).unbind(0)
