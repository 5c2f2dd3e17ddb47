"""cosFormer, not causal (arXiv:2202.08791)."""

import math

import torch
from torch import Tensor

from infvit.attention.kernel import KernelAttention
from infvit.attention.layer import Masks
from infvit.attention.tokens import places


class CosFormerAttention(KernelAttention):
    """Weights relu(Q_i) · relu(K_j) cos(π/2 · (i − j) / N): nearer tokens weigh more, along the sequence of tokens.

    cos(a − b) = cos a cos b + sin a sin b makes it a kernel of 2 d features. The paper's M is the number of tokens;
    padding counts neither in N nor in i and j. In an image the sequence runs through the rows of patches.
    """

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        place, count = places(K[:, 0], masks)
        angle = (math.pi / 2 * place.to(K.dtype) / count)[:, None, :, None]
        axes = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return _turned(Q, axes[:, :, : Q.shape[-2]]), _turned(K, axes)


def _turned(x: Tensor, axes: Tensor) -> Tensor:
    """relu(x), (B, H, n, d), along the cosine and the sine of its place, (B or 1, 1, n, 2): (B, H, n, 2 d)."""
    return (axes.unsqueeze(-1) * x.relu().unsqueeze(-2)).flatten(-2)
