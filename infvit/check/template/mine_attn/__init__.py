"""An attention of one's own. This one mixes tokens through a d × d state per head, as arXiv:1812.01243 does."""

import torch
from torch import Tensor, nn


class Mine(nn.Module):
    """O = softmax_features(Q) (softmax_tokens(K)ᵀ V): (B, N, D) → (B, N, D). `qkv` and `proj` are timm's names."""

    def __init__(self, dim: int, num_heads: int = 8, qkv_bias: bool = True) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim, bias=qkv_bias), nn.Linear(dim, dim)

    def forward(self, x: Tensor, key_padding_mask: Tensor | None = None) -> Tensor:
        """`key_padding_mask`: (B, N), True for padding, which the other tokens do not see."""
        if key_padding_mask is not None:
            x = x.masked_fill(key_padding_mask[..., None], 0)
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if key_padding_mask is not None:
            k = k.masked_fill(key_padding_mask[:, None, :, None], -torch.inf)
        out = q.softmax(-1) @ (k.softmax(-2).mT @ v)
        return self.proj(out.transpose(1, 2).flatten(2))

    def flops(self, N: int) -> int:
        """FLOPs of one image, two per multiply-add, which `python -m infvit.check` compares with what torch counts."""
        D, H = self.proj.in_features, self.num_heads
        return 2 * N * D * 4 * D + 2 * 2 * N * D * D // H
