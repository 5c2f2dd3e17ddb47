"""Differential attention: the difference of two softmax attentions (arXiv:2410.05258)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.layer import Masks, without_autocast
from infvit.attention.rng import independent_normal
from infvit.attention.token_attention import TokenAttention
from infvit.attention.tokens import masked_softmax, precise
from infvit.errors import UsageError, expect


class DifferentialAttention(TokenAttention):
    """O = (1 − lambda_init) rms_norm((softmax(Q₁ K₁ᵀ / √(d/2)) − lambda softmax(Q₂ K₂ᵀ / √(d/2))) V).

        lambda = exp(q₁ · k₁) − exp(q₂ · k₂) + lambda_init

    Q₁ and Q₂ are the halves of Q's channels, K₁ and K₂ of K's. The norm is over the channels of a head. One set of
    parameters for all heads: q₁, k₁, q₂ and k₂ of d/2 numbers each (`lambdas`, one after the other) and the norm's d
    scales (`norm_weight`).

    The paper halves the number of heads against softmax, so that Q₁ is as wide as softmax's Q; here heads are equal in
    number. Left out are its rotary position embedding and a lambda_init that grows from layer to layer, which a layer
    cannot know: a constant is as good in the paper. Halves are padded with zeros for the fused kernels, which want one
    width, at N² D more FLOPs per softmax.

    Args:
        lambda_init: initial lambda, 0.8 in the paper's comparison of constants.

    Raises:
        UsageError: if heads have an odd number of channels, or lambda_init is not between 0 and 1.
    """

    name, paper = "differential", "arXiv:2410.05258"
    time, memory, state = "O(N² D)", "O(N) (fused kernel)", "N² or K, V"
    supported_masks = frozenset({"key_padding_mask", "attn_mask", "is_causal"})

    def __init__(self, dim: int, num_heads: int = 8, *, lambda_init: float = 0.8, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(0 < lambda_init < 1, f"lambda_init={lambda_init}", "a number between 0 and 1, as 0.8 in the paper")
        if self.head_dim % 2:
            raise UsageError(
                f"num_heads={num_heads} makes heads of {self.head_dim} of dim={dim} channels, which "
                "DifferentialAttention cannot halve: choose another number of heads"
            )
        self.lambda_init = lambda_init
        self.lambdas = nn.Parameter(independent_normal(2 * self.head_dim, std=0.1))
        self.norm_weight = nn.Parameter(torch.ones(self.head_dim))

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """The difference of both matrices, of either sign; rows sum to 1 − lambda, or 0 for a token that sees none."""
        hidden, scale = masks.hidden(K[:, 0]), (self.head_dim / 2) ** -0.5
        with without_autocast(Q):
            halves = zip(precise(Q).chunk(2, -1), precise(K).chunk(2, -1), strict=True)
            first, second = (masked_softmax(q * scale @ k.mT, hidden) for q, k in halves)
            return first - self._lambda() * second

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        dropout, scale = self.attn_drop.p if self.training else 0.0, (self.head_dim / 2) ** -0.5
        hidden = masks.hidden(V[:, 0])
        seen = None if hidden is None else ~hidden
        halves = (F.pad(t.unflatten(-1, (2, -1)), (0, self.head_dim // 2)).unbind(-2) for t in (Q, K))
        first, second = (
            precise(F.scaled_dot_product_attention(q, k, V, seen, dropout_p=dropout, scale=scale))
            for q, k in zip(*halves, strict=True)
        )
        return self._normalised(first - self._lambda() * second).to(V.dtype)

    def apply_weights(self, W: Tensor, V: Tensor) -> Tensor:
        """The norm of each token's sum of values: (B, H, N, N), (B, H, N, d) → (B, H, N, d)."""
        return self._normalised(W @ V)

    def _lambda(self) -> Tensor:
        q1, k1, q2, k2 = precise(self.lambdas).chunk(4)
        return (q1 * k1).sum().exp() - (q2 * k2).sum().exp() + self.lambda_init

    def _normalised(self, O: Tensor) -> Tensor:  # noqa: E741
        with without_autocast(O):
            weight = self.norm_weight.to(O.dtype)
            return (1 - self.lambda_init) * F.rms_norm(O, (self.head_dim,), weight, eps=1e-5)
