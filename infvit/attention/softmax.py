"""Softmax attention, fused and unfused: the baseline of every comparison (arXiv:1706.03762)."""

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.layer import Masks
from infvit.attention.token_attention import TokenAttention
from infvit.attention.tokens import masked_softmax


class SoftmaxAttention(TokenAttention):
    """Scaled dot-product attention through torch's fused kernel: O(N²) time, O(N) memory.

    softmax(Q Kᵀ / √d) V, the same function and parameters as timm's `Attention`. A token that sees no token gets 0.
    """

    name, paper = "softmax", "arXiv:1706.03762"
    time, memory, state = "O(N² D)", "O(N) (fused kernel)", "N² or K, V"
    supported_masks = frozenset({"key_padding_mask", "attn_mask", "is_causal"})

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """Rows sum to 1, or 0 for a token that sees none."""
        return masked_softmax(Q * self.head_dim**-0.5 @ K.mT, masks.hidden(K[:, 0]))

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        dropout = self.attn_drop.p if self.training else 0.0
        hidden = masks.hidden(V[:, 0])
        seen = None if hidden is None else ~hidden
        return F.scaled_dot_product_attention(Q, K, V, seen, dropout_p=dropout)


class UnfusedSoftmaxAttention(SoftmaxAttention):
    """The same function with the N × N matrix in memory, as attention was written before fused kernels.

    For benchmarks: a speed-up over unfused softmax alone overstates any other attention.
    """

    name, memory, state = "softmax_unfused", "O(N² H)", "N²"

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        return TokenAttention.mix(self, Q, K, V, masks)
