"""What every attention layer shares: one signature, timm's parameter names, and the learnable discount gamma."""

import math
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from infvit.errors import UsageError

EPS = 1e-6
"""Added to every norm that divides (arXiv:2603.00175)."""


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Operations inside keep the precision of their operands (meta tensors know no autocast)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


class Attention(nn.Module):
    """Base of the attention layers: (B, N, D) → (B, N, D), parameters packed as timm's (`qkv`, `proj`).

    Args:
        dim: token width D.
        num_heads: heads H; each is d = D / H wide.
        qkv_bias: whether the q, k, v projections have a bias.
        attn_drop: dropout probability of the weights that the operator gives to tokens.
        proj_drop: dropout probability of the output.

    Raises:
        UsageError: if `num_heads` does not divide `dim`.
    """

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            divisors = [h for h in range(1, min(dim, 64) + 1) if dim % h == 0]
            raise UsageError(f"num_heads={num_heads} does not divide dim={dim}: choose one of {divisors}")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K, V of the tokens: (B, N, D) → three times (B, H, N, d)."""
        B, N, _ = self._checked(x).shape
        Q, K, V = self.qkv(x).view(B, N, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
        return Q, K, V

    def merge(self, O: Tensor) -> Tensor:  # noqa: E741 (the paper's letter)
        """Joins the heads and projects: (B, H, N, d) → (B, N, D)."""
        B, H, N, d = O.shape
        return self.proj_drop(self.proj(O.transpose(1, 2).reshape(B, N, H * d)))

    def weights(self, x: Tensor) -> Tensor:
        """What the operator weighs tokens with: (B, H, N, N) or, where one weight serves all tokens, (B, H, N)."""
        raise NotImplementedError

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected (B, N, D) with D = {self.dim}")
        return x

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


class DiscountedAttention(Attention):
    """An attention with a learnable discount gamma in (0, 1) per head, stored as the logit `gamma_logit` (H,).

    Args:
        gamma: initial discount of every head.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        gamma: float = 0.95,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        if not 0 < gamma < 1:
            raise UsageError(f"gamma={gamma} is not a discount: expected 0 < gamma < 1")
        self.gamma_logit = nn.Parameter(torch.full((num_heads,), math.log(gamma / (1 - gamma))))

    @property
    def gamma(self) -> Tensor:
        """The discount per head, (H,), in (0, 1)."""
        return self.gamma_logit.sigmoid()
