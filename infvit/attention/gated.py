"""Base of the operators that multiply the output of each token with a linear map of the token, channel by channel."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.layer import Attention, Masks
from infvit.attention.rng import independent_normal


class GatedAttention(Attention):
    """O_i = G_i ⊙ Σ_j w_ij V_j with the gate G = x Wgᵀ + bg: a subclass implements `mix` and `matrices`.

    Weights are those of each channel, gate included, of either sign. `gate_weight` (D, D) is initially normal with
    timm's standard deviation of 0.02, as in the published code, `gate_bias` (D,) 0.
    """

    def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.gate_weight = nn.Parameter(independent_normal(dim, dim, std=0.02))
        self.gate_bias = nn.Parameter(torch.zeros(dim))

    def mix(self, x: Tensor, masks: Masks, first: int | None) -> tuple[Tensor, Tensor]:
        """Σ_j w_ij V_j of the `first` tokens or of all, (B, H, n, d), in the dtype of V, and V of all."""
        raise NotImplementedError

    def matrices(self, x: Tensor, masks: Masks) -> Tensor:
        """w of each channel, in float32 or better: (B, N, D) → (B, H, d or 1, N, N)."""
        raise NotImplementedError

    @property
    def weight_heads(self) -> int:
        """One head per channel."""
        return self.dim

    def apply_weights(self, W: Tensor, V: Tensor) -> Tensor:
        """(B, D, N, N), (B, H, N, d) → (B, H, N, d)."""
        return (W.unflatten(1, (self.num_heads, -1)) @ V.mT.unsqueeze(-1)).squeeze(-1).mT

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        mixed, V = self.mix(x, masks, first)
        return self._gate(x[:, :first]) * mixed, V

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        gate = self._gate(x).mT.unsqueeze(-1)
        return (gate * self.matrices(x, masks)).flatten(1, 2)

    def _gate(self, x: Tensor) -> Tensor:
        """G, (B, n, D) → (B, H, n, d)."""
        (gate,) = self.split_heads(F.linear(x, self.gate_weight, self.gate_bias))
        return gate
