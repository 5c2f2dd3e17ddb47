"""Focused linear attention, FLatten (arXiv:2308.00442)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.kernel import TINY, KernelAttention
from infvit.attention.layer import Masks
from infvit.attention.rng import independent_normal
from infvit.attention.tokens import square_side
from infvit.errors import UsageError, expect


class FocusedLinearAttention(KernelAttention):
    """phi(x) = ‖relu x‖ / ‖relu(x)^p‖ · relu(x)^p: keeps the norm, turns the direction towards its largest axis.

    With `kernel_size` k a depthwise k × k convolution of V over the grid of patches is added to O, the same d filters
    for all heads, as published. The grid follows from the number of tokens: a square, or a square and one class token,
    to which the convolution adds nothing. Any other number is refused, and so is padding, which would break the grid.
    As in the paper and unlike its published code, Q and K are not divided by a learned scale per channel, K has no
    position embedding of its own, and norms are taken per head.

    Args:
        power: p; 3 in the paper.
        kernel_size: odd side of the convolution, 5 in the paper; 0 disables it.

    Raises:
        UsageError: if power is not positive, or kernel_size is neither odd nor 0.
    """

    name, paper = "focused_linear", "arXiv:2308.00442"

    def __init__(
        self, dim: int, num_heads: int = 8, *, power: float = 3.0, kernel_size: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(power > 0, f"power={power}", "a power above 0, as 3 in the paper")
        odd = kernel_size > 0 and kernel_size % 2 == 1
        expect(odd or kernel_size == 0, f"kernel_size={kernel_size}", "an odd side, or 0 for no convolution")
        self.power, self.kernel_size = power, kernel_size
        if kernel_size:
            shape, std = (self.head_dim, 1, kernel_size, kernel_size), 1 / (math.sqrt(3) * kernel_size)
            self.conv_weight = nn.Parameter(independent_normal(*shape, std=std))
            self.conv_bias = nn.Parameter(torch.zeros(self.head_dim))

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        return focused(Q, self.power), focused(K, self.power)

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        if self.kernel_size and masks.key_padding_mask is not None:
            raise UsageError("FocusedLinearAttention cannot honour key_padding_mask with a convolution: kernel_size=0")
        O = super().mix(Q, K, V, masks)  # noqa: E741
        return O + self._local(V)[:, :, : Q.shape[-2]] if self.kernel_size else O

    def _local(self, V: Tensor) -> Tensor:
        """The convolution of V's patches, (B, H, N, d), 0 at the class token."""
        B, H, N, d = V.shape
        side = square_side(N, "the convolution of FocusedLinearAttention needs: use square images, or kernel_size=0")
        prefix = N - side**2
        grid = V[:, :, prefix:].mT.reshape(B * H, d, side, side)
        local = F.conv2d(grid, self.conv_weight, self.conv_bias, padding=self.kernel_size // 2, groups=d)
        return F.pad(local.view(B, H, d, side**2).mT, (0, 0, prefix, 0))


def focused(x: Tensor, power: float) -> Tensor:
    """‖relu x‖ / ‖relu(x)^p‖ · relu(x)^p: (..., d) → (..., d)."""
    x = x.relu()
    norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    # The power is taken of the direction: powers of x could leave the range of float32.
    direction = (x / norm.clamp_min(TINY)) ** power
    return norm * direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True).clamp_min(TINY)
