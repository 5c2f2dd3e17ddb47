"""XCiT's cross-covariance attention (arXiv:2106.09681)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.layer import EPS, Q_AND_K, V_ALONE, Attention, Masks, without_autocast
from infvit.attention.tokens import hide, precise
from infvit.errors import UsageError


class CrossCovarianceAttention(Attention):
    """Attention between the channels of a head: O = V softmax(tau · K̂ᵀ Q̂), columns of Q̂, K̂ (N, d) of norm 1.

    O(N) time, a d × d state per head. It is linear in V token by token: tokens meet only in the covariance. XCiT pairs
    it with a convolution over patches (its local patch interaction), which is a block of its own and left out here.

    `temperature` (H,) is tau, learned per head, 1 at the start. `attn_drop` drops weights between channels, as timm's.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        self.temperature = nn.Parameter(torch.ones(num_heads))

    def attend(self, x: Tensor, masks: Masks) -> Tensor:
        return self._merged(*self.heads(x), masks)

    def first(self, x: Tensor) -> Tensor:
        """`forward(x)[:, :1]` with queries and keys of all tokens, and value and output of one."""
        self._check_tokens(x)
        (Q, K), (V,) = self.projected(x, Q_AND_K), self.projected(x[:, :1], V_ALONE)
        return self._merged(Q, K, V, Masks())

    def _merged(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        with without_autocast(V):
            weights = self.attn_drop(self._weights(Q, K, masks))
            O = precise(V) @ weights.mT  # noqa: E741
        return self.merge(O.to(V.dtype))

    def weigh(self, x: Tensor, masks: Masks) -> Tensor:
        """Raises UsageError: no token has a weight."""
        raise UsageError(
            "CrossCovarianceAttention weighs channels, not tokens: `channel_weights(x)` gives (B, H, d, d)"
        )

    def channel_weights(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """What an output channel (row) takes of each value channel: (B, N, D) → (B, H, d, d), rows summing to 1."""
        masks = Masks(key_padding_mask)
        Q, K, _ = self.heads(self._admitted(x, masks))
        with without_autocast(x):
            return self._weights(Q, K, masks)

    def _weights(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        Q, K = (F.normalize(precise(hide(t, masks)), dim=-2, eps=EPS) for t in (Q, K))
        return (self.temperature[:, None, None] * (Q.mT @ K)).softmax(-1)
