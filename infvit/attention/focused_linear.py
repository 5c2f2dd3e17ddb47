"""Focused linear attention, FLatten (arXiv:2308.00442)."""

from typing import Any

import torch
from torch import Tensor

from infvit.attention.kernel import TINY, KernelAttention
from infvit.attention.layer import Masks
from infvit.errors import expect


class FocusedLinearAttention(KernelAttention):
    """phi(x) = ‖relu x‖ / ‖relu(x)^p‖ · relu(x)^p: keeps the norm, turns the direction towards its largest axis.

    The paper adds a depthwise convolution of V, which is `locality`: `model=focused_linear +locality=dwconv` is its
    form, with 3 × 3 patches and a filter for each channel (published: 5 × 5, the same d filters for all heads, a case
    of `locality=5`). As in the paper and unlike its published code, Q and K are not divided by a learned scale per
    channel, K has no position embedding of its own, and norms are taken per head.

    Args:
        power: p; 3 in the paper.

    Raises:
        UsageError: if power is not positive.
    """

    name, paper = "focused_linear", "arXiv:2308.00442"

    def __init__(self, dim: int, num_heads: int = 8, *, power: float = 3.0, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(power > 0, f"power={power}", "a power above 0, as 3 in the paper")
        self.power = power

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        return focused(Q, self.power), focused(K, self.power)


def focused(x: Tensor, power: float) -> Tensor:
    """‖relu x‖ / ‖relu(x)^p‖ · relu(x)^p: (..., d) → (..., d)."""
    x = x.relu()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # The power is taken of the direction: powers of x could leave the range of float32.
    direction = (x / norm.clamp_min(TINY)) ** power
    return norm * direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True).clamp_min(TINY)
