"""A convolution over the grid of patches, which can be switched on beside every attention."""

import math

from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.rng import independent_normal
from infvit.errors import UsageError, expect


class DepthwiseConv(nn.Module):
    """The weighted sum of V over the k × k patches around each patch, a filter of its own for each of the D channels.

    The grid follows from the number of tokens: a square, or a square and one class token, which gets 0 and adds to no
    patch. Padding adds 0, as what is outside of the grid. `weight` (D, 1, k, k) is initially normal with variance
    1 / (3 k²), that of torch's convolutions, and `bias` (D,) 0.

    Raises:
        UsageError: if k is not odd.
    """

    def __init__(self, dim: int, k: int) -> None:
        super().__init__()
        expect(k > 0 and k % 2 == 1, f"locality={k}", "an odd side of the convolution, as 3, or 0 for none")
        self.weight = nn.Parameter(independent_normal(dim, 1, k, k, std=1 / (math.sqrt(3) * k)))
        self.bias = nn.Parameter(self.weight.new_zeros(dim))

    def forward(self, V: Tensor, padding: Tensor | None = None) -> Tensor:
        """V of all tokens, (B, H, N, d) → (B, H, N, d). padding: (B, N), True for padding.

        Raises:
            UsageError: if the tokens are not a square grid.
        """
        V = V if padding is None else V.masked_fill(padding[:, None, :, None], 0)
        prefix = self.prefix(V.shape[-2])
        side = math.isqrt(V.shape[-2] - prefix)
        grid = V[:, :, prefix:].transpose(1, 2).flatten(2).unflatten(1, (side, side)).permute(0, 3, 1, 2)
        local = F.conv2d(grid, self.weight, self.bias, padding=self.weight.shape[-1] // 2, groups=grid.shape[1])
        return F.pad(local.flatten(2).unflatten(1, (V.shape[1], V.shape[-1])).mT, (0, 0, prefix, 0))

    def prefix(self, N: int) -> int:
        """The number of tokens before the patches, 0 or 1; UsageError for N tokens that are not a square grid."""
        return N - square_side(N, "locality needs: use square images, or locality=0") ** 2

    def extra_repr(self) -> str:
        return " × ".join(map(str, self.weight.shape[2:]))


def square_side(N: int, reason: str) -> int:
    """The side of the square grid of N patches, or of N − 1 patches after a class token.

    Raises:
        UsageError: for another number; `reason` completes its message.
    """
    side = math.isqrt(N)
    if N - side**2 > 1:
        raise UsageError(f"{N} tokens are not a square grid with or without a class token, which {reason}")
    return side
