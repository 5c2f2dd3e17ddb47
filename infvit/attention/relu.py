"""ReLU attention, divided by the number of tokens (arXiv:2309.08586)."""

from torch import Tensor

from infvit.attention.layer import Masks
from infvit.attention.token_attention import TokenAttention


class ReLUAttention(TokenAttention):
    """O = relu(Q Kᵀ / √d) / N · V: O(N²) time and memory.

    N counts the tokens that a token sees, so that masked tokens change nothing; 0 for a token that sees none.
    """

    name, paper = "relu", "arXiv:2309.08586"
    time, memory, state = "O(N² D)", "O(N² H)", "N²"
    supported_masks = frozenset({"key_padding_mask", "attn_mask", "is_causal"})

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """Rows have any sum from 0."""
        hidden = masks.hidden(K[:, 0])
        scores = (Q * self.head_dim**-0.5 @ K.mT).relu()
        if hidden is None:
            return scores / K.shape[-2]
        seen = (~hidden).sum(-1, keepdim=True).clamp_min(1)
        return scores.masked_fill(hidden, 0) / seen.to(scores.dtype)
