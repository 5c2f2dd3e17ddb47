"""Base of the operators that sum discounted hops over a normalised token graph (arXiv:2603.00175)."""

import math
from typing import Any

import torch
from torch import Tensor

from infvit.attention.layer import DiscountedAttention, Masks
from infvit.attention.tokens import precise
from infvit.errors import expect

DOUBLINGS = 10
"""Factors of the product that takes the place of a linear system in exported files: the first 2^10 hops."""


class SeriesAttention(DiscountedAttention):
    """O = Σ_{t=1..hops} (gamma Ahat)ᵗ V for an Ahat whose spectral radius is at most 1; `weights` are Ahat.

    Args:
        hops: largest length of the paths that are summed, or `math.inf`.

    Raises:
        UsageError: if hops is neither a whole number from 1 nor infinite.
    """

    def __init__(self, dim: int, num_heads: int = 8, *, hops: float, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(hops >= 1 and hops in (math.inf, hops // 1), f"hops={hops}", "a whole number from 1, or inf")
        self.hops = hops

    def apply_weights(self, W: Tensor, V: Tensor) -> Tensor:
        """The sum of the hops, with W = Ahat: (B, H, N, N), (B, H, N, d) → (B, H, N, d)."""
        M = self.gamma[:, None, None] * W
        return M @ self.resolvent(M, V)

    def resolvent(self, M: Tensor, V: Tensor) -> Tensor:
        """Σ_{t<hops} Mᵗ V, for hops = inf (I − M)⁻¹ V: (..., n, n), (..., n, e) → (..., n, e).

        ONNX has no linear systems; there it is Π_{k<K} (I + M^(2^k)) V.
        """
        S = V
        if self.hops < math.inf:
            for _ in range(int(self.hops) - 1):
                S = V + M @ S
        elif torch.compiler.is_exporting():
            for k in range(DOUBLINGS):
                M = M @ M if k else M
                S = S + M @ S
        else:
            S = torch.linalg.solve_ex(torch.eye(M.shape[-1], dtype=M.dtype, device=M.device) - M, V).result
        return S

    @torch.no_grad()
    def truncation_bound(self, x: Tensor, hops: float | None = None, **masks: Any) -> Tensor:
        """An upper bound on ‖O_hops − O_inf‖_F, the truncation error of each head: (B, N, D) → (B, H).

            g^(hops + 1) / (1 − g) · ‖V‖_F          g = gamma ‖Ahat‖₂

        ‖Ahat‖₂ is bounded from above within a few per cent. Masks as in `forward`; hops: the layer's own by default,
        2^`DOUBLINGS` for a file that is exported with hops = inf.
        """
        given = Masks(**masks)
        x = self._checked(x, given)
        V = precise(self.heads(x)[2])
        if given.key_padding_mask is not None:
            V = V.masked_fill(given.key_padding_mask[:, None, :, None], 0)
        g = self._gain(x, given)
        return g ** ((self.hops if hops is None else hops) + 1) / (1 - g) * torch.linalg.matrix_norm(V)

    def _gain(self, x: Tensor, masks: Masks) -> Tensor:
        """An upper bound on gamma ‖Ahat‖₂: (B, N, D) → (B, H)."""
        raise NotImplementedError

    def _qkv(self, x: Tensor, masks: Masks) -> Tensor:
        """(B, N, 3, H, d), 0 at padding, which makes its rows and columns of A 0."""
        qkv = self.qkv(x).view(*x.shape[:2], 3, self.num_heads, self.head_dim)
        padding = masks.key_padding_mask
        return qkv if padding is None else qkv.masked_fill(padding[..., None, None, None], 0)
