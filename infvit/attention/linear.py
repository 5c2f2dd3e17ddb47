"""Linear-InfSA: O(N) time and a state of fixed size, by exact reassociation (arXiv:2603.00175)."""

from collections.abc import Sequence
from functools import partial, reduce
from itertools import repeat
from operator import add
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from infvit.attention.layer import EPS, DiscountedAttention, Masks, precision, without_autocast
from infvit.attention.sums import Totals, gathered, recomputed, relative, sum_dtype
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

    so of the per-token projections only Q is computed, for its norms, and with `locality` V. The sums of disjoint
    tokens add: `sums` and `output` run the layer over tokens in pieces or on several ranks (`SummedAttention`).

    A head whose scores are all ≤ 0 gives exactly 0 and gradient 0.

    Args:
        chunk: tokens at a time, forward and backward: extra memory does not depend on the number of tokens, and the
            backward pass computes Q a second time. None takes all tokens at once, which trains faster.

    Raises:
        UsageError: if chunk is not positive, or given with `attn_drop`.
    """

    name, paper, weighs, rounds = "linear_infsa", "arXiv:2603.00175", "vector", 2
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

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, None]:
        """One row per image, whatever `first`."""
        padding = masks.key_padding_mask
        if self.training and self.attn_drop.p > 0:
            a = self.attn_drop(self._weights(x, masks))
            with without_autocast(x):
                return self._pooled_values(a.sum(-1), a @ x.to(a.dtype), x.dtype), None
        if self.chunk is not None:
            totals = gathered(self, partial(self._sums_in_chunks, x.split(self.chunk, 1), padding))
        else:
            totals = gathered(self, lambda before: self.sums(x, *before, padding=padding))
        return self._row(totals, x.dtype), None

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """The weight a of each token, (B, H, N), summing to 1 unless the head is off."""
        _, Wk, _, _, bk, _ = self._maps()
        qbar = mean_query(self.sums(x, padding=masks.key_padding_mask))
        scores, unit = token_scores(x, qbar, Wk, bk, masks.key_padding_mask)
        with without_autocast(x):
            w, largest = relative(scores)
            norm = w.sum(-1, dtype=unit.dtype) + EPS / largest / unit
            return (w / norm.unsqueeze(-1)).to(w.dtype)

    def apply_weights(self, W: Tensor, V: Tensor) -> Tensor:
        """gamma Σ_j a_j V_j for every token, with W = a: (B, H, N), (B, H, N, d) → (B, H, N, d)."""
        return (self.gamma[:, None, None] * (W.unsqueeze(-2) @ V)).expand_as(V)

    def sums(self, x: Tensor, *before: Tensor, padding: Tensor | None = None) -> Tensor:
        """The query sums of some tokens, (B, n, D) → (B, H, 1 + d), or the token sums, (B, H, 1 + D).

        The second round is given the total of the first. padding: (B, n), True for padding.
        """
        Wq, Wk, _, bq, bk, _ = self._maps()
        if not before:
            return query_sums(x, Wq, bq, self.num_heads, padding)
        return token_sums(x, mean_query(before[0]), Wk, bk, padding)

    def _sums_in_chunks(self, pieces: Sequence[Tensor], padding: Tensor | None, before: Totals) -> Tensor:
        paddings = repeat(None) if padding is None else padding.split(pieces[0].shape[1], 1)
        parts = zip(pieces, paddings, strict=False)
        return reduce(add, (recomputed(partial(self.sums, padding=p), x, *before) for x, p in parts))

    def scores(self, x: Tensor, totals: Totals) -> Tensor:
        """a~_j of these tokens, not divided by the sum of all: (B, N, D) → (B, H, N)."""
        _, Wk, _, _, bk, _ = self._maps()
        relative_scores, unit = token_scores(x, mean_query(totals[0]), Wk, bk)
        return relative_scores * unit.unsqueeze(-1)

    def output(self, x: Tensor, totals: Totals) -> Tensor:
        """The output of every token, (B, 1, D), in the dtype of x, of which nothing else is read."""
        return self.merge_heads(self._row(totals, x.dtype))

    def _row(self, totals: Totals, dtype: torch.dtype) -> Tensor:
        """gamma Σ_j a_j V_j, (B, H, 1, d)."""
        pooled = totals[1] / (totals[1][..., :1] + EPS)
        return self._pooled_values(pooled[..., 0], pooled[..., 1:], dtype)

    def _pooled_values(self, total: Tensor, pooled: Tensor, dtype: torch.dtype) -> Tensor:
        """gamma (Wv pooled + total · bv): (B, H), (B, H, D) → (B, H, 1, d)."""
        *_, Wv, _, _, bv = self._maps()
        with without_autocast(pooled):
            precise = torch.promote_types(dtype, torch.float32)
            V = per_head(pooled.to(precise), Wv, self.num_heads)
            if bv is not None:
                V = V + total.to(precise).unsqueeze(-1) * bv.view(self.num_heads, -1).to(precise)
            return (self.gamma[:, None] * V).unsqueeze(2).to(dtype)

    def _maps(self) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
        return split_qkv(*self.qkv_map())


def split_qkv(
    W: Tensor, b: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Wq, Wk, Wv, each (D, D), and bq, bk, bv, each (D,) or None, of the packed projections (3 D, D) and (3 D,)."""
    return *W.chunk(3), *((None, None, None) if b is None else b.chunk(3))


def query_sums(x: Tensor, Wq: Tensor, bq: Tensor | None, heads: int, padding: Tensor | None = None) -> Tensor:
    """(Σ ‖Q_i‖, Σ ‖Q_i‖ Q_i), the second as Wq Σ ‖Q_i‖ x_i + (Σ ‖Q_i‖) bq: (B, n, D) → (B, H, 1 + d)."""
    Q = F.linear(x, Wq, bq).unflatten(-1, (heads, -1))
    exporting = torch.compiler.is_exporting()  # exported files contain torch's own operators only
    norms = (torch.linalg.vector_norm(Q, dim=-1, dtype=precision(Q)) if exporting else row_norms(Q)).mT
    norms = norms if padding is None else norms.masked_fill(padding.unsqueeze(1), 0)
    with without_autocast(x):
        w, largest = relative(norms)
        weight = w.sum(-1, dtype=sum_dtype(x))
        weighted = per_head(w @ x.to(w.dtype), Wq, heads).to(weight.dtype)
        if bq is not None:
            weighted = weighted + weight.unsqueeze(-1) * bq.view(heads, -1).to(weight.dtype)
        return torch.cat((weight.unsqueeze(-1), weighted), -1) * largest.unsqueeze(-1)


def mean_query(total: Tensor) -> Tensor:
    """qbar = Σ ‖Q_i‖ Q_i / (Σ ‖Q_i‖ + eps), from the query sums of all tokens: (B, H, d)."""
    return total[..., 1:] / (total[..., :1] + EPS)


def token_scores(
    x: Tensor, qbar: Tensor, Wk: Tensor, bk: Tensor | None, padding: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """relu(qbar · K_j / d) = relu((u · x_j + qbar · bk) / d) with u = Wkᵀ qbar, of qbar divided by its largest entry.

    Args:
        x: (B, N, D).
        qbar: (B, H, d).

    Returns:
        (B, H, N), 0 at padding, and the factor that they must be multiplied by, (B, H).
    """
    heads = qbar.shape[1]
    with without_autocast(x):
        q, largest = relative(qbar)
        q = q.to(precision(x))
        scores = torch.einsum("bhd,hdD->bhD", q, Wk.to(q.dtype).unflatten(0, (heads, -1))) @ x.to(q.dtype).mT
        if bk is not None:
            scores = scores + (q * bk.view(heads, -1).to(q.dtype)).sum(-1, keepdim=True)
        scores = (scores / qbar.shape[-1]).relu()
        return scores if padding is None else scores.masked_fill(padding.unsqueeze(1), 0), largest


def token_sums(x: Tensor, qbar: Tensor, Wk: Tensor, bk: Tensor | None, padding: Tensor | None = None) -> Tensor:
    """(Σ a~_j, Σ a~_j x_j) with a~_j = relu(qbar · K_j / d): (B, n, D), (B, H, d) → (B, H, 1 + D)."""
    scores, unit = token_scores(x, qbar, Wk, bk, padding)
    with without_autocast(x):
        w, largest = relative(scores)
        factor = largest.to(sum_dtype(x)) * unit
        weight, weighted = w.sum(-1, keepdim=True, dtype=factor.dtype), (w @ x.to(w.dtype)).to(factor.dtype)
        return torch.cat((weight, weighted), -1) * factor.unsqueeze(-1)


def per_head(pooled: Tensor, W: Tensor, heads: int) -> Tensor:
    """Each head's rows of W (D, D) applied to its own vector: (B, H, D) → (B, H, d)."""
    return torch.einsum("bhD,hdD->bhd", pooled, W.to(pooled.dtype).unflatten(0, (heads, -1)))


SAFE = 1e-15
"""Norms from here on belong to entries whose squares are in the range of float32."""


@torch.library.custom_op("infvit::row_norms", mutates_args=())
def row_norms(Q: Tensor) -> Tensor:
    """‖Q_i‖ for entries of any scale: (..., d) → (...), in float32 or better.

    On a CPU float64 takes 40 times as long and is used only where squares leave the range of float32; on a GPU always,
    because that check would synchronise. A custom operator, because the branch would break the graph of torch.compile.
    """
    if Q.device.type != "cpu":
        return torch.linalg.vector_norm(Q, dim=-1, dtype=sum_dtype(Q)).to(precision(Q))
    norms = torch.linalg.vector_norm(Q, dim=-1, dtype=precision(Q))
    safe = (norms >= SAFE) & (norms < torch.inf)
    if safe.all():
        return norms
    # Chosen per norm, so that an image does not depend on the others of its batch.
    return torch.where(safe, norms, torch.linalg.vector_norm(Q, dim=-1, dtype=torch.float64).to(norms.dtype))


@row_norms.register_fake
def _(Q: Tensor) -> Tensor:
    return Q.new_empty(Q.shape[:-1], dtype=precision(Q))


def _save(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0], output)


def _backward(ctx: Any, grad: Tensor) -> Tensor:
    Q, norms = ctx.saved_tensors
    return Q * (grad / torch.where(norms == 0, 1, norms)).unsqueeze(-1).to(Q.dtype)


row_norms.register_autograd(_backward, setup_context=_save)
