"""PolaFormer's polarity-aware linear attention (arXiv:2501.15061)."""

from typing import Any

import torch
from torch import Tensor, nn

from infvit.attention.gated import GatedAttention
from infvit.attention.kernel import kernel_weights, mean_by_kernel
from infvit.attention.layer import K_AND_V, Q_ALONE, Q_AND_K, Masks, without_autocast
from infvit.attention.tokens import drop_tokens, precise, zero_padding
from infvit.errors import expect


class PolaFormerAttention(GatedAttention):
    """Linear attention of the signs: half of the channels of V by products of equal, half by those of opposite sign.

        phi⁺(x) = [relu(x)^p, relu(−x)^p]      phi⁻(x) = [relu(−x)^p, relu(x)^p]
        O_i = G_i ⊙ [Σ_j phi⁺(Q_i) · phi⁺(K_j) V⁺_j / Σ_j ..., Σ_j phi⁻(Q_i) · phi⁺(K_j) V⁻_j / Σ_j ...]

    p = 1 + power · sigmoid(w) with w (`exponent`, (H, d)) learned per channel, initially 0. V⁺ are the first ⌈d/2⌉
    channels of a head, V⁻ the others. The gate G, linear in the token, is the paper's pair of coefficients. Left out
    are its 5 × 5 depthwise convolution of V before the gate (`locality` is one after it) and, of its published code,
    the position embedding of K and the learned scale of the channels of Q and K. `attn_drop` drops whole tokens.

    Args:
        power: α; exponents are between 1 and 1 + α; 4 in the published code, which starts at 3.

    Raises:
        UsageError: if power is not positive.
    """

    name, paper = "polaformer", "arXiv:2501.15061"
    time, memory, state = "O(N D d)", "O(N D)", "2 (d² + d)"

    def __init__(self, dim: int, num_heads: int = 8, *, power: float = 4.0, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(power > 0, f"power={power}", "a power above 0, as 4 in the published code")
        self.power = power
        self.exponent = nn.Parameter(torch.zeros(num_heads, self.head_dim))

    def mix(self, x: Tensor, masks: Masks, first: int | None) -> tuple[Tensor, Tensor]:
        if first is None:
            Q, K, V = self.heads(x)
        else:
            (Q,), (K, V) = self.project(x[:, :first], Q_ALONE), self.project(x, K_AND_V)
        with without_autocast(x):
            same, opposite, phi_K = self._features(Q, K, masks)
            halves = drop_tokens(precise(V), self.attn_drop).split(self._halves, -1)
            mixed = [mean_by_kernel(phi, phi_K, half) for phi, half in zip((same, opposite), halves, strict=True)]
            return torch.cat(mixed, -1).to(V.dtype), V

    def matrices(self, x: Tensor, masks: Masks) -> Tensor:
        Q, K = self.project(x, Q_AND_K)
        with without_autocast(x):
            *phi_Qs, phi_K = self._features(Q, K, masks)
            weights = torch.stack([kernel_weights(phi_Q, phi_K) for phi_Q in phi_Qs], 2)
        return weights.repeat_interleave(torch.tensor(self._halves, device=x.device), 2)

    @property
    def _halves(self) -> list[int]:
        return [self.head_dim - self.head_dim // 2, self.head_dim // 2]

    def _features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor, Tensor]:
        """phi⁺(Q) and phi⁻(Q), (B, H, n, 2 d), and phi⁺(K), (B, H, N, 2 d), 0 at padding."""
        p = 1 + self.power * precise(self.exponent).sigmoid().unsqueeze(1)
        positive, negative = (precise(sign * Q).relu() ** p for sign in (1, -1))
        phi_K = torch.cat([precise(sign * K).relu() ** p for sign in (1, -1)], -1)
        return torch.cat([positive, negative], -1), torch.cat([negative, positive], -1), zero_padding(phi_K, masks)
