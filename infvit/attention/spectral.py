"""Pure InfSA with a temperature and with discounts up to the inverse of the spectral radius (arXiv:2603.00175)."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from infvit.attention.diffusion import collatz_wielandt
from infvit.attention.kernel_infsa import LARGEST_GAMMA
from infvit.attention.layer import Masks, without_autocast
from infvit.attention.pure import PureInfSA, affinities
from infvit.attention.series import SeriesAttention
from infvit.attention.tokens import drop_tokens, precise


class SpectralInfSA(SeriesAttention):
    """The series of PureInfSA on the graph's own scale, as later versions of the paper bound gamma.

        A    = relu(Q Kᵀ / d)^(1/tau)               tau in (0, 1) learned per head
        Ahat = A / bound                            bound ≥ ‖A‖₂ ≥ rho(A), per image and head
        O    = Σ_{t=1..hops} (gamma Ahat)ᵗ V        gamma in (0, 1); hops = inf: ((I − gamma Ahat)⁻¹ − I) V

    In terms of PureInfSA's Ahat this is a discount of gamma ‖A‖_F / bound, in (0, 1 / rho(Ahat)) and up to √N times as
    large, so that further hops count. The bound is that of the truncation error, by Collatz and Wielandt. A temperature
    that divides the scores would cancel in any norm; here it divides their logarithm.

    The N × N matrix is held, in float32 or better. `temperature_logit` and `gamma_logit` (H,) are initially those of
    0.95. `attn_drop` drops whole tokens of V.

    Args:
        hops: largest length of the paths that are summed, or `math.inf`.

    Raises:
        UsageError: if hops is neither a whole number from 1 nor infinite.
    """

    name, paper = "spectral_infsa", "arXiv:2603.00175"
    time, memory, state = "O(N³ H)", "O(N² H)", "N²"
    supported_masks, mask_hint = PureInfSA.supported_masks, PureInfSA.mask_hint

    def __init__(self, dim: int, num_heads: int = 8, *, hops: float = math.inf, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, hops=hops, **kwargs)
        self.temperature_logit = nn.Parameter(torch.full((num_heads,), math.log(0.95 / 0.05)))

    @property
    def gamma(self) -> Tensor:
        """The discount of each head, (H,), in (0, 1)."""
        return self.gamma_logit.sigmoid().clamp(max=LARGEST_GAMMA).expand(self.num_heads)

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        qkv = self._qkv(x, masks)
        V = qkv[:, :, 2].transpose(1, 2)
        with without_autocast(x):
            O = self.apply_weights(self._graph(qkv, masks.hidden(x)), drop_tokens(precise(V), self.attn_drop))  # noqa: E741
        return O[:, :, :first].to(V.dtype), V

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """Ahat, without gamma."""
        with without_autocast(x):
            return self._graph(self._qkv(x, masks), masks.hidden(x))

    def _graph(self, qkv: Tensor, hidden: Tensor | None) -> Tensor:
        """Ahat: (B, N, 3, H, d) → (B, H, N, N)."""
        A, _ = affinities(precise(qkv), hidden)
        A = A ** (1 + torch.exp(-precise(self.temperature_logit)))[:, None, None]  # 1/tau
        return over_spectral_norm(A)

    def _gain(self, x: Tensor, masks: Masks) -> Tensor:
        return self.gamma.expand(len(x), -1)


def over_spectral_norm(A: Tensor) -> Tensor:
    """A nonnegative A divided by an upper bound on ‖A‖₂, 0 for 0: (..., N, N) → (..., N, N)."""
    square = A.square().sum((-2, -1), keepdim=True)
    zero = square == 0
    A = A / torch.where(zero, 1, square).sqrt()
    bound = collatz_wielandt(lambda v: A.mT @ (A @ v), torch.ones_like(A[..., :1]), rounds=2)
    return A / torch.where(zero, 1, bound).sqrt()
