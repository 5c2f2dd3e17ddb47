"""XCiT's cross-covariance attention (arXiv:2106.09681)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.layer import EPS, Q_AND_K, V_ALONE, Attention, Masks, without_autocast
from infvit.attention.tokens import precise, zero_padding


class CrossCovarianceAttention(Attention):
    """Attention between the channels of a head: O = V softmax(tau · K̂ᵀ Q̂), columns of Q̂, K̂ (N, d) of norm 1.

    O(N) time, a d × d state per head. Linear in V token by token: tokens interact only through the covariance. XCiT
    pairs it with a convolution over patches (its local patch interaction), a block of its own that is not part of this.

    `temperature` (H,) is tau, learned per head, initially 1. `attn_drop` drops weights between channels, as timm's.
    """

    name, paper, weighs = "xca", "arXiv:2106.09681", "nothing"
    time, memory, state = "O(N D d)", "O(N D)", "d²"

    def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.temperature = nn.Parameter(torch.ones(num_heads))

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        Q, K, V = self.heads(x) if first is None else (*self.project(x, Q_AND_K), *self.project(x[:, :first], V_ALONE))
        with without_autocast(V):
            Q, K = (F.normalize(precise(zero_padding(t, masks)), dim=-2, eps=EPS) for t in (Q, K))
            weights = (self.temperature[:, None, None] * (Q.mT @ K)).softmax(-1)  # (B, H, d, d)
            return (precise(V) @ self.attn_drop(weights).mT).to(V.dtype), V
