"""Attention operators with one signature: `(dim, num_heads=8, qkv_bias=True, attn_drop=0., proj_drop=0., ...)`.

| name               | operator                | paper            | time     | memory beyond Q, K, V | state per head |
|--------------------|-------------------------|------------------|----------|-----------------------|----------------|
| `softmax`          | SoftmaxAttention        | arXiv:1706.03762 | O(N² d)  | O(N) (fused kernel)   | N² or K, V     |
| `softmax_unfused`  | UnfusedSoftmaxAttention | arXiv:1706.03762 | O(N² d)  | O(N²)                 | N²             |
| `infsa`            | PureInfSA               | arXiv:2603.00175 | O(N² d)  | O(N) (blocks of rows) | N² or K, V     |
| `linear_infsa`     | LinearInfSA             | arXiv:2603.00175 | O(N D d) | O(N)                  | D + 1 numbers  |
"""

from infvit.attention.layer import Attention, DiscountedAttention
from infvit.attention.linear import LinearInfSA
from infvit.attention.pure import PureInfSA
from infvit.attention.softmax import SoftmaxAttention, UnfusedSoftmaxAttention

ATTENTIONS: dict[str, type[Attention]] = {
    "softmax": SoftmaxAttention,
    "softmax_unfused": UnfusedSoftmaxAttention,
    "infsa": PureInfSA,
    "linear_infsa": LinearInfSA,
}

__all__ = [
    "ATTENTIONS",
    "Attention",
    "DiscountedAttention",
    "LinearInfSA",
    "PureInfSA",
    "SoftmaxAttention",
    "UnfusedSoftmaxAttention",
]
