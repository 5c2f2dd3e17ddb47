"""XCiT's cross-covariance attention (arXiv:2106.09681)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.layer import EPS, Q_AND_K, V_ALONE, Attention, Masks, without_autocast
from infvit.attention.tokens import precise, zero_padding
from infvit.errors import UsageError


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

    def _forward(self, x: Tensor, masks: Masks) -> Tensor:
        return self._output(*self.heads(x), masks)

    def forward_class_token(self, x: Tensor) -> Tensor:
        """`forward(x)[:, :1]` with queries and keys of all tokens, and value and output of one."""
        self._check_tokens(x)
        (Q, K), (V,) = self.project(x, Q_AND_K), self.project(x[:, :1], V_ALONE)
        return self._output(Q, K, V, Masks())

    def _output(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        with without_autocast(V):
            weights = self.attn_drop(self._between_channels(Q, K, masks))
            O = precise(V) @ weights.mT  # noqa: E741
        return self.merge_heads(O.to(V.dtype))

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """Raises UsageError: weights are between channels."""
        raise UsageError(
            "CrossCovarianceAttention weighs channels, not tokens: `channel_weights(x)` gives (B, H, d, d)"
        )

    def channel_weights(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """Weights of value channels (columns) in output channels (rows, summing to 1): (B, N, D) → (B, H, d, d)."""
        masks = Masks(key_padding_mask)
        Q, K, _ = self.heads(self._checked(x, masks))
        with without_autocast(x):
            return self._between_channels(Q, K, masks)

    def _between_channels(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        Q, K = (F.normalize(precise(zero_padding(t, masks)), dim=-2, eps=EPS) for t in (Q, K))
        return (self.temperature[:, None, None] * (Q.mT @ K)).softmax(-1)
