"""ReLU in place of softmax, divided by the number of tokens (arXiv:2309.08586)."""

from torch import Tensor

from infvit.attention.layer import Masks
from infvit.attention.token_attention import QueryAttention


class ReLUAttention(QueryAttention):
    """O = relu(Q Kᵀ / √d) / N · V: O(N²) time and memory.

    N counts the tokens that a token may see, so that a mask leaves what the rest would be alone; 0 for one that may
    see nothing.
    """

    honours = frozenset({"key_padding_mask", "attn_mask", "is_causal"})

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        return self.attn_drop(self._matrix(Q, K, masks.hidden(V[:, 0]))) @ V

    def weigh(self, x: Tensor, masks: Masks) -> Tensor:
        """The matrix of weights, whose rows sum to any number from 0: (B, N, D) → (B, H, N, N)."""
        Q, K, _ = self.heads(x)
        return self._matrix(Q, K, masks.hidden(x))

    def _matrix(self, Q: Tensor, K: Tensor, hidden: Tensor | None) -> Tensor:
        scores = (Q * self.head_dim**-0.5 @ K.mT).relu()
        if hidden is None:
            return scores / K.shape[-2]
        seen = (~hidden).sum(-1, keepdim=True).clamp_min(1)
        return scores.masked_fill(hidden, 0) / seen.to(scores.dtype)
