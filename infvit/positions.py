"""Where a token is: initial position embeddings, and their interpolation to other resolutions.

Linear-InfSA gives every token the same vector, so a token must know where it is from the first layer on. With the
usual faint positions (normal, std 0.02) it hardly learns; from sin-cos at full scale it does. The start of the
positions is therefore part of the recipe, the same for every model.
"""

import math
from collections.abc import Callable

import torch
from timm.layers import build_sincos2d_pos_embed, resample_abs_pos_embed
from torch import Tensor

from infvit.errors import UsageError, expect

PositionStart = Callable[[tuple[int, int], int], Tensor]
"""(grid height, grid width), D → the initial embedding of each patch, (h · w, D)."""


def sincos(grid: tuple[int, int], dim: int) -> Tensor:
    """2-D sine-cosine positions with unit amplitude: (h, w), D → (h · w, D).

    Raises:
        UsageError: if `dim` is not a multiple of 4 (sine and cosine for each of two axes).
    """
    if dim % 4:
        raise UsageError(f"dim={dim} is not a multiple of 4, which 2-D sin-cos positions need: choose {dim + -dim % 4}")
    return build_sincos2d_pos_embed(list(grid), dim=dim, interleave_sin_cos=False)


def normal(grid: tuple[int, int], dim: int, std: float = 0.02) -> Tensor:
    """Positions drawn from a normal of the given std, 0 or more: (h, w), D → (h · w, D)."""
    expect(0 <= std < math.inf, f"std={std}", "0 or more")
    return torch.randn(grid[0] * grid[1], dim) * std


POSITIONS: dict[str, PositionStart] = {"sincos": sincos, "normal": normal}


def resample(positions: Tensor, grid: tuple[int, int], new_grid: tuple[int, int], prefix: int) -> Tensor:
    """Bicubic interpolation of (1, prefix + h · w, D) to another grid; the prefix tokens stay as they are."""
    if grid == new_grid:
        return positions
    return resample_abs_pos_embed(positions, new_size=list(new_grid), old_size=list(grid), num_prefix_tokens=prefix)
