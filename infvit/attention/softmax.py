"""Softmax attention, fused and unfused: the baseline of every comparison."""

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.layer import Attention


class SoftmaxAttention(Attention):
    """Scaled dot-product attention through torch's fused kernel: O(N²) time, O(N) memory.

    softmax(Q Kᵀ / √d) V (arXiv:1706.03762), the same function and parameters as timm's `Attention`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        Q, K, V = self.heads(x)
        dropout = self.attn_drop.p if self.training else 0.0
        return self.merge(F.scaled_dot_product_attention(Q, K, V, dropout_p=dropout))

    def weights(self, x: Tensor) -> Tensor:
        """The attention matrix, rows summing to 1: (B, N, D) → (B, H, N, N)."""
        Q, K, _ = self.heads(x)
        return (Q * self.head_dim**-0.5 @ K.mT).softmax(dim=-1)


class UnfusedSoftmaxAttention(SoftmaxAttention):
    """The same function with the N × N matrix held in memory, as attention was written before fused kernels.

    It exists for benchmarks: a speed-up against unfused softmax alone flatters any other attention.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, D) → (B, N, D)."""
        Q, K, V = self.heads(x)
        weights = (Q * self.head_dim**-0.5 @ K.mT).softmax(dim=-1)
        return self.merge(self.attn_drop(weights) @ V)
