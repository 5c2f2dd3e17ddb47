"""Mamba-2's state space model in two directions, as a token mixer (arXiv:2405.21060)."""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.gated import GatedAttention
from infvit.attention.layer import Masks, without_autocast
from infvit.attention.rng import independent_normal, independent_uniform
from infvit.attention.tokens import drop_tokens, precise, zero_padding
from infvit.errors import expect


class BidirectionalMamba2(GatedAttention):
    """O = rms_norm(silu(G) ⊙ (→y + ←y + skip V)), a scan over the tokens in each direction, O(N) time and memory.

        h_i = exp(−r delta_i) h_{i−1} + delta_i K_i V_iᵀ        (d, d); ←y from the last token to the first
        y_i = Q_iᵀ h_i = Σ_{j≤i} exp(−r Σ_{j<l≤i} delta_l) delta_j (Q_i · K_j) V_j
        delta = softplus(x Wd + bd)

    Q, K, V are activated by silu, the paper's C, B and x; r > 0 and delta are of each head and direction. Computed as
    the paper's state space dual: `chunk` tokens at a time by matrices, and a state from each chunk to the next.

    The paper scans once; two directions with shared Q, K, V, G and added results are as in Vision Mamba
    (arXiv:2401.09417). A class token is the first token: it gets all others by the scan back alone, and begins the
    other (there it stands in the middle of the sequence). Left out are the causal convolution before silu and the
    doubled inner width; K and Q are of each head, where the paper's heads share them, and G has a bias. Initial r are
    uniform in 1 to 16 and delta log-uniform in 0.001 to 0.1, as published. `attn_drop` drops whole tokens. Padding is
    skipped by both scans.

    Args:
        chunk: tokens at a time, which changes nothing but speed and memory.

    Raises:
        UsageError: if chunk is not positive.
    """

    name, paper = "mamba2", "arXiv:2405.21060"
    time, memory, state = "O(N D d)", "O(N D)", "2 d²"

    def __init__(self, dim: int, num_heads: int = 8, *, chunk: int = 64, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(chunk >= 1, f"chunk={chunk}", "a number of tokens from 1")
        self.chunk = chunk
        start = independent_uniform(2 * num_heads, low=math.log(1e-3), high=math.log(1e-1)).exp()
        self.delta_weight = nn.Parameter(independent_normal(2 * num_heads, dim, std=0.02))
        self.delta_bias = nn.Parameter(start.expm1().log())  # softplus(bias) = start
        self.log_rate = nn.Parameter(independent_uniform(2 * num_heads, low=1.0, high=16.0).log())
        self.skip = nn.Parameter(torch.ones(num_heads))
        self.norm_weight = nn.Parameter(torch.ones(dim))

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        Q, K, V = map(F.silu, super().heads(x))
        return Q, K, V

    def mix(self, x: Tensor, masks: Masks, first: int | None) -> tuple[Tensor, Tensor]:
        Q, K, V = self.heads(x)
        with without_autocast(x):
            delta, decay = self._steps(x, masks)
            dropped = drop_tokens(precise(V), self.attn_drop)
            Q2, K2, V2 = (torch.stack((t, t.flip(-2))) for t in (precise(Q), precise(K), dropped))
            there, back = scan(Q2, K2, V2, delta, decay, self.chunk)
            O = there + back.flip(-2) + self.skip[:, None, None] * dropped  # noqa: E741
            return O[:, :, :first].to(V.dtype), V

    def matrices(self, x: Tensor, masks: Masks) -> Tensor:
        Q, K, _ = self.heads(x)
        with without_autocast(x):
            delta, decay = self._steps(x, masks)
            there, back = segment_sums(decay).exp() * delta.unsqueeze(-2)
            skip = self.skip[:, None, None] * torch.eye(Q.shape[-2], device=x.device)
            weights = precise(Q) @ precise(K).mT * (there + back.flip(-2, -1)) + skip
            return zero_padding(weights.mT, masks).mT.unsqueeze(2)

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        O, V = super()._forward(x, masks, first)  # noqa: E741
        return (self._scales(O) * O).to(O.dtype), V

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        W = super()._weights(x, masks)
        O = self.apply_weights(W, precise(self.heads(x)[2]))  # noqa: E741
        return W * self._scales(O).mT.flatten(1, 2).unsqueeze(-1)

    def _gate(self, x: Tensor) -> Tensor:
        return F.silu(super()._gate(x))

    def _scales(self, O: Tensor) -> Tensor:  # noqa: E741
        """What the norm over all channels multiplies a token's with: (B, H, n, d) → (B, H, n, d)."""
        size = (precise(O).square().mean((1, 3), keepdim=True) + 1e-5).rsqrt()
        return size * self.norm_weight.view(self.num_heads, 1, -1)

    def _steps(self, x: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """delta and −r delta, in the order of the scan, 0 at padding: (B, N, D) → twice (2, B, H, N)."""
        weight, bias, rate = (precise(t) for t in (self.delta_weight, self.delta_bias, self.log_rate.exp()))
        delta = F.softplus(F.linear(precise(x), weight, bias)).unflatten(-1, (2, -1)).permute(2, 0, 3, 1)
        if masks.key_padding_mask is not None:
            delta = delta.masked_fill(masks.key_padding_mask.unsqueeze(1), 0)
        there, back = delta
        delta = torch.stack((there, back.flip(-1)))
        return delta, -delta * rate.view(2, 1, -1, 1)


def scan(Q: Tensor, K: Tensor, V: Tensor, delta: Tensor, decay: Tensor, chunk: int) -> Tensor:
    """y_i = Σ_{j≤i} exp(Σ_{j<l≤i} decay_l) delta_j (Q_i · K_j) V_j: (..., N, d), (..., N) → (..., N, d)."""
    N = Q.shape[-2]
    chunk = min(chunk, N)
    missing = -N % chunk
    Q, K, V = (F.pad(t, (0, 0, 0, missing)).unflatten(-2, (-1, chunk)) for t in (Q, K * delta.unsqueeze(-1), V))
    decay = F.pad(decay, (0, missing)).unflatten(-1, (-1, chunk))
    weights = segment_sums(decay).exp()
    y = (Q @ K.mT * weights) @ V
    if chunk < N:
        added = (K * weights[..., -1, :, None]).mT @ V  # to the state, by each chunk
        after = segment_sums(decay.sum(-1)).exp() @ added.flatten(-2)
        before = F.pad(after[..., :-1, :], (0, 0, 1, 0)).view_as(added)
        y = y + (Q * decay.cumsum(-1).exp().unsqueeze(-1)) @ before
    return y.flatten(-3, -2)[..., :N, :]


def segment_sums(x: Tensor) -> Tensor:
    """Σ_{j<l≤i} x_l in row i and column j ≤ i, −inf above, as sums and not as differences: (..., N) → (..., N, N)."""
    seen = torch.ones(x.shape[-1], x.shape[-1], dtype=torch.bool, device=x.device).tril()
    sums = x.unsqueeze(-1).expand(*x.shape, x.shape[-1]).masked_fill(~seen.tril(-1), 0).cumsum(-2)
    return sums.masked_fill(~seen, -torch.inf)
