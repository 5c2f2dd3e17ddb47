"""cosFormer, not causal (arXiv:2202.08791)."""

import math

import torch
from torch import Tensor

from infvit.attention.kernel import KernelAttention
from infvit.attention.layer import Masks
from infvit.attention.tokens import sequence_index


class CosFormerAttention(KernelAttention):
    """Weights relu(Q_i) · relu(K_j) cos(π/2 · (i − j) / N): larger for tokens nearer in the sequence.

    cos(a − b) = cos a cos b + sin a sin b makes it a kernel of 2 d features. The paper's M is the number of tokens N;
    N, i and j do not count padding. In an image the sequence runs along the rows of patches.
    """

    name, paper, state = "cosformer", "arXiv:2202.08791", "2 (d² + d)"

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        index, count = sequence_index(K[:, 0], masks)
        angle = (math.pi / 2 * index.to(K.dtype) / count)[:, None, :, None]
        axes = torch.cat([angle.cos(), angle.sin()], dim=-1)
        return _rotated(Q, axes[:, :, : Q.shape[-2]]), _rotated(K, axes)


def _rotated(x: Tensor, axes: Tensor) -> Tensor:
    """relu(x), (B, H, n, d), times the cosine and the sine, (B or 1, 1, n, 2), of its index: (B, H, n, 2 d)."""
    return (axes.unsqueeze(-1) * x.relu().unsqueeze(-2)).flatten(-2)
