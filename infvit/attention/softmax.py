"""Softmax attention, fused and unfused: the baseline of every comparison."""

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.layer import Masks
from infvit.attention.token_attention import QueryAttention
from infvit.attention.tokens import seen_softmax


class SoftmaxAttention(QueryAttention):
    """Scaled dot-product attention through torch's fused kernel: O(N²) time, O(N) memory.

    softmax(Q Kᵀ / √d) V (arXiv:1706.03762), the same function and parameters as timm's `Attention`. A token that may
    see nothing gets 0.
    """

    honours = frozenset({"key_padding_mask", "attn_mask", "is_causal"})

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        dropout = self.attn_drop.p if self.training else 0.0
        hidden = masks.hidden(V[:, 0])
        seen = None if hidden is None else ~hidden
        return F.scaled_dot_product_attention(Q, K, V, seen, dropout_p=dropout)

    def weigh(self, x: Tensor, masks: Masks) -> Tensor:
        """The attention matrix, rows summing to 1: (B, N, D) → (B, H, N, N)."""
        Q, K, _ = self.heads(x)
        return self._matrix(Q, K, masks.hidden(x))

    def _matrix(self, Q: Tensor, K: Tensor, hidden: Tensor | None) -> Tensor:
        return seen_softmax(Q * self.head_dim**-0.5 @ K.mT, hidden)


class UnfusedSoftmaxAttention(SoftmaxAttention):
    """The same function with the N × N matrix held in memory, as attention was written before fused kernels.

    It exists for benchmarks: a speed-up against unfused softmax alone flatters any other attention.
    """

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        return self.attn_drop(self._matrix(Q, K, masks.hidden(V[:, 0]))) @ V
