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
        place, count = places(Q[:, 0], masks)
        angle = (math.pi / 2 * place.to(Q.dtype) / count)[:, None, :, None]
        cos, sin = angle.cos(), angle.sin()
        Q, K = Q.relu(), K.relu()
        return torch.cat([Q * cos, Q * sin], dim=-1), torch.cat([K * cos, K * sin], dim=-1)
