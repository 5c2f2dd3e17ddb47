"""Pure InfSA: diffusion steps on the token graph, O(N²) time, O(N) memory (arXiv:2603.00175)."""

import math
from typing import Any

import torch
from torch import Tensor

from infvit.attention.diffusion import INFINITE, diffuse, spectral_bound
from infvit.attention.graph_tiles import with_eps
from infvit.attention.layer import Masks, autocasts, largest_entry, precision, without_autocast
from infvit.attention.series import SeriesAttention
from infvit.attention.tokens import precise
from infvit.errors import expect

DENSE_TOKENS = 512
"""Up to this many tokens the N × N matrix is held in memory, which is faster than tiles."""


class PureInfSA(SeriesAttention):
    """Discounted hops over a nonnegative, Frobenius-normalised token graph.

        A    = relu(Q Kᵀ / d)                   affinities of one head, (N, N)
        Ahat = A / (‖A‖_F + eps)                ‖Ahat‖₂ ≤ ‖Ahat‖_F ≤ 1, so every Neumann series of gamma Ahat converges
        O    = Σ_{t=1..hops} (gamma Ahat)ᵗ V    hops = 1: O = gamma Ahat V
             = ((I − gamma Ahat)⁻¹ − I) V       hops = inf

    Up to `DENSE_TOKENS` tokens the matrix is held in memory and the infinite series is a linear solve. Above, the
    matrix is computed in tiles, again in the backward pass, and the infinite series is iterated to `tolerance`, forward
    and backward. (With `attn_drop` in training it is held, so that both passes drop the same weights.) The infinite
    series is computed in float32 or better. A head whose scores are all ≤ 0 gives exactly 0 and gradient 0.

    An `attn_mask` removes edges of the graph: a hidden token has weight 0 in row i and adds no value to it, except by
    further hops through tokens that see it. ‖A‖_F is over all rows, so the masks of other rows scale row i as well.

    Args:
        hops: largest length of the paths that are summed, or `math.inf`. Each costs one more product with A.
        tolerance: relative error in ‖O‖_F at which the iteration for hops = inf stops.

    Raises:
        UsageError: if hops is neither a whole number from 1 nor infinite, tolerance is not positive, or hops = inf
            with `attn_drop` (a matrix with weights dropped and the rest scaled up may have no Neumann series).
    """

    name, paper = "infsa", "arXiv:2603.00175"
    time, memory, state = "O(N² D)", "O(N) (tiles)", "N² or K, V"
    supported_masks = frozenset({"key_padding_mask", "attn_mask"})
    mask_hint = (
        "‖A‖_F is one number for all rows, so later tokens would scale what earlier ones receive; "
        "use SoftmaxAttention or ReLUAttention, which take it"
    )

    def __init__(
        self, dim: int, num_heads: int = 8, *, hops: float = 1, tolerance: float = 1e-5, **kwargs: Any
    ) -> None:
        super().__init__(dim, num_heads, hops=hops, **kwargs)
        expect(tolerance > 0, f"tolerance={tolerance}", "the part of the output that may be missing, above 0")
        dropped = f"attn_drop={self.attn_drop.p} with hops=inf"
        expect(hops < math.inf or not self.attn_drop.p, dropped, "0: the series of a dropped matrix may diverge")
        self.tolerance = tolerance

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor | None]:
        V, dropping = None, self.training and self.attn_drop.p > 0
        if x.shape[1] > DENSE_TOKENS and not dropping and not torch.compiler.is_exporting():
            O = self._tiled(x, masks)[:, :first]  # noqa: E741
        else:
            qkv = self._qkv(x, masks)
            O, V = self._dense(qkv, masks.hidden(x), first), qkv[:, :, 2].transpose(1, 2)  # noqa: E741
        return O.to(x.dtype).transpose(1, 2), V

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """Ahat, without gamma."""
        A, norm = affinities(self._qkv(x, masks), masks.hidden(x))
        return (A / norm).to(A.dtype)

    def _gain(self, x: Tensor, masks: Masks) -> Tensor:
        qkv = precise(self._qkv(x, masks))
        return spectral_bound(qkv, self.gamma, masks._replace(key_padding_mask=None).hidden(x))

    def _tiled(self, x: Tensor, masks: Masks) -> Tensor:
        """(B, N, D) → (B, N, H, d)."""
        hops = INFINITE if self.hops == math.inf else int(self.hops)
        dtype = x.dtype
        if hops == INFINITE:
            dtype = precision(x)
        elif autocasts(x):
            dtype = torch.get_autocast_dtype(x.device.type)
        W, b = (None if t is None else t.to(dtype) for t in self.qkv_map())
        padding, hidden = masks.key_padding_mask, masks._replace(key_padding_mask=None).hidden(x)
        return diffuse(x.to(dtype), W, b, self.gamma, hops, self.tolerance, padding, hidden)[0]

    def _dense(self, qkv: Tensor, hidden: Tensor | None, first: int | None = None) -> Tensor:
        """(B, N, 3, H, d) → (B, N, H, d), or of the `first` tokens."""
        V = qkv[:, :, 2].transpose(1, 2)
        if self.hops == math.inf:
            with without_autocast(qkv):
                A, norm = affinities(precise(qkv), hidden)
                return self.apply_weights(A / norm, precise(V)).transpose(1, 2)[:, :first]
        A, norm = affinities(qkv, hidden)
        # gamma and the norm are one number per head: scaling the (N, d) result costs less than the (N, N) matrix.
        scale = self.gamma[:, None, None] / norm
        A = self.attn_drop(A)
        Y = V
        for _ in range(int(self.hops) - 1):
            Y = V + (scale * (A @ Y)).to(V.dtype)
        return (scale * (A[:, :, :first] @ Y)).to(V.dtype).transpose(1, 2)


def affinities(qkv: Tensor, hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A = relu(Q Kᵀ / d) and ‖A‖_F + eps, both divided by the same number per head; their quotient is Ahat.

    The division keeps any scale in range, see `largest_entry`; the norm is in float32 or better, 1 for A = 0.

    Args:
        qkv: Q, K and perhaps V, (B, N, 2 or 3, H, d).
        hidden: bool, broadcasts to (B, H, N, N), True where A is set to 0.

    Returns:
        (B, H, N, N) and (B, H, 1, 1).
    """
    QK = qkv[:, :, :2].transpose(1, 3)
    units, d = largest_entry(QK, (-2, -1)), QK.shape[-1]
    units[:, :, 0] *= d
    Q, K = (QK / units).unbind(2)
    A = (Q @ K.mT).relu()
    A = A if hidden is None else A.masked_fill(hidden, 0)
    norm = torch.linalg.vector_norm(A, dim=(-2, -1), keepdim=True, dtype=precision(A))
    q, k = units.unbind(2)
    return A, with_eps(norm, q / d, k)
