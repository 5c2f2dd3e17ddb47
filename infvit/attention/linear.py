"""Linear-InfSA: O(N) time and a state of fixed size, by exact reassociation (arXiv:2603.00175)."""

from typing import Any

import torch
from torch import Tensor

from infvit.attention.chunked import pool
from infvit.attention.layer import EPS, DiscountedAttention, Masks, without_autocast
from infvit.attention.sums import Sums, mean_query, per_head, query_sums, relative, split_qkv, token_scores, token_sums
from infvit.errors import expect


class LinearInfSA(DiscountedAttention):
    """Every token receives the same pooled vector; its weights approximate the principal eigenvector of A.

        alpha_i = ‖Q_i‖ / (Σ_j ‖Q_j‖ + eps)
        qbar    = Σ_i alpha_i Q_i                                        (d)
        a_j     = relu(qbar · K_j / d) / (Σ_l relu(qbar · K_l / d) + eps)
        O_i     = gamma Σ_j a_j V_j                                      the same for all i

    computed as two sums over tokens, with the projections moved out of them (u_h = Wk_hᵀ qbar_h):

        query sums   Σ ‖Q_i‖, Σ ‖Q_i‖ Q_i      qbar      = Σ ‖Q_i‖ Q_i / (Σ ‖Q_i‖ + eps)
        token sums   Σ a~_j, Σ a~_j x_j        a~_j      = relu((u · x_j + qbar · bk) / d)
                                               Σ a_j V_j = Wv Σ a_j x_j + (Σ a_j) bv

    so of the per-token projections only Q is computed, for its norms. The sums of disjoint tokens add: `query_sums`,
    `qbar`, `token_sums` and `output` run the layer over tokens in pieces or on several ranks (`SummedAttention`).

    A head whose scores are all ≤ 0 gives exactly 0 and gradient 0.

    Args:
        chunk: tokens at a time, forward and backward: extra memory does not depend on the number of tokens, and the
            backward pass computes Q a second time. None takes all tokens at once, which trains faster.

    Raises:
        UsageError: if chunk is not positive, or given with `attn_drop`.
    """

    name, paper, weighs = "linear_infsa", "arXiv:2603.00175", "vector"
    time, memory, state = "O(N D H)", "O(N H)", "D + 1 numbers"
    mask_hint = (
        "it gives every token the same vector, so no token can see others than the rest do; use key_padding_mask to "
        "leave tokens out for all, or SoftmaxAttention"
    )

    def __init__(self, dim: int, num_heads: int = 8, *, chunk: int | None = None, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(
            chunk is None or (chunk >= 1 and not self.attn_drop.p),
            f"chunk={chunk} with attn_drop={self.attn_drop.p}",
            "a number of tokens from 1, and attn_drop=0 (a dropped weight must be the same in both passes)",
        )
        self.chunk = chunk

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> Tensor:
        """One row per image, expanded over the tokens without a copy."""
        if self.training and self.attn_drop.p > 0:
            a = self.attn_drop(self._weights(x, masks))
            with without_autocast(x):
                row = self._output(a.sum(-1), a @ x.to(a.dtype), x.dtype)
        elif self.chunk is not None:
            row = self.output(self.chunked_sums(x, self.chunk, masks.key_padding_mask), x.dtype)
        else:
            qbar = self.qbar(self.query_sums(x, masks.key_padding_mask))
            row = self.output(self.token_sums(x, qbar, masks.key_padding_mask), x.dtype)
        return row.expand_as(x[:, :first])

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """The weight a of each token, (B, H, N), summing to 1 unless the head is off."""
        _, Wk, _, _, bk, _ = self._maps()
        qbar = self.qbar(self.query_sums(x, masks.key_padding_mask))
        scores, unit = token_scores(x, qbar, Wk, bk, masks.key_padding_mask)
        with without_autocast(x):
            w, largest = relative(scores)
            norm = w.sum(-1, dtype=unit.dtype) + EPS / largest / unit
            return (w / norm.unsqueeze(-1)).to(w.dtype)

    def apply_weights(self, W: Tensor, V: Tensor) -> Tensor:
        """gamma Σ_j a_j V_j for every token, with W = a: (B, H, N), (B, H, N, d) → (B, H, N, d)."""
        return (self.gamma[:, None, None] * (W.unsqueeze(-2) @ V)).expand_as(V)

    def chunked_sums(self, x: Tensor, chunk: int, padding: Tensor | None = None) -> Sums:
        """`token_sums` of all tokens, in extra memory independent of N also backward: (B, N, D) → (B, H), (B, H, D)."""
        W, b = self.qkv_map()
        return Sums(*pool(x, W, b, padding, self.num_heads, chunk))

    def query_sums(self, x: Tensor, padding: Tensor | None = None) -> Sums:
        """(Σ ‖Q_i‖, Σ ‖Q_i‖ Q_i) of some tokens: (B, N, D) → (B, H), (B, H, d). padding: (B, N), True for padding."""
        Wq, _, _, bq, _, _ = self._maps()
        return query_sums(x, Wq, bq, self.num_heads, padding)

    qbar = staticmethod(mean_query)

    def token_sums(self, x: Tensor, qbar: Tensor, padding: Tensor | None = None) -> Sums:
        """(Σ a~_j, Σ a~_j x_j) of these tokens: (B, N, D), (B, H, d) → (B, H), (B, H, D)."""
        _, Wk, _, _, bk, _ = self._maps()
        return token_sums(x, qbar, Wk, bk, padding)

    def scores(self, x: Tensor, qbar: Tensor) -> Tensor:
        """a~_j of these tokens, not divided by the sum of all: (B, N, D), (B, H, d) → (B, H, N)."""
        _, Wk, _, _, bk, _ = self._maps()
        relative_scores, unit = token_scores(x, qbar, Wk, bk)
        return relative_scores * unit.unsqueeze(-1)

    def output(self, total: Sums, dtype: torch.dtype) -> Tensor:
        """The output of every token, from the token sums of all: (B, 1, D)."""
        norm = total.weight + EPS
        return self._output(total.weight / norm, total.weighted / norm.unsqueeze(-1), dtype)

    def _output(self, total: Tensor, pooled: Tensor, dtype: torch.dtype) -> Tensor:
        """proj(gamma (Wv pooled + total · bv)): (B, H), (B, H, D) → (B, 1, D)."""
        *_, Wv, _, _, bv = self._maps()
        with without_autocast(pooled):
            precise = torch.promote_types(dtype, torch.float32)
            V = per_head(pooled.to(precise), Wv, self.num_heads)
            if bv is not None:
                V = V + total.to(precise).unsqueeze(-1) * bv.view(self.num_heads, -1).to(precise)
            V = (self.gamma[:, None] * V).flatten(1).unsqueeze(1).to(dtype)
        return self.proj_drop(self.proj(V))

    def _maps(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return split_qkv(*self.qkv_map())
