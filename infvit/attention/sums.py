"""Linear-InfSA's two sums over tokens: each associative and of fixed size for any number of tokens.

Sums are accumulated in float64 (float32 on devices without it): a weight may be 1e30 or 3e-6 of the total, and squares
of 1e30 are 1e60. Values per token are float32 at least: weights are divided by the largest one first, which cancels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.layer import EPS, largest_entry, precision, without_autocast


@dataclass(frozen=True)
class Sums:
    """Σ w_i and Σ w_i v_i of some tokens, per image and head. Disjoint tokens' sums add; ranks all-reduce both tensors.

    Attributes:
        weight: (B, H).
        weighted: (B, H, e).
    """

    weight: Tensor
    weighted: Tensor

    def __add__(self, other: "Sums") -> "Sums":
        return Sums(self.weight + other.weight, self.weighted + other.weighted)


@runtime_checkable
class SummedAttention(Protocol):
    """An attention whose tokens interact only through two `Sums`; `infvit.highres` runs it over pieces of an image.

    Of all tokens' `query_sums` it makes qbar, of all `token_sums` with qbar the output, one row for every token.
    `scores` are the weights before normalisation, `chunked_sums` is `token_sums` of all tokens with a backward pass.
    """

    attn_drop: nn.Dropout

    def query_sums(self, x: Tensor) -> Sums: ...
    def qbar(self, total: Sums) -> Tensor: ...
    def token_sums(self, x: Tensor, qbar: Tensor) -> Sums: ...
    def scores(self, x: Tensor, qbar: Tensor) -> Tensor: ...
    def chunked_sums(self, x: Tensor, chunk: int) -> Sums: ...
    def output(self, total: Sums, dtype: torch.dtype) -> Tensor: ...


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over tokens."""
    return torch.float32 if x.device.type == "mps" else torch.float64


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


def split_qkv(
    W: Tensor, b: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Wq, Wk, Wv, each (D, D), and bq, bk, bv, each (D,) or None, of the packed projections (3 D, D) and (3 D,)."""
    return *W.chunk(3), *((None, None, None) if b is None else b.chunk(3))


def query_sums(x: Tensor, Wq: Tensor, bq: Tensor | None, heads: int, padding: Tensor | None = None) -> Sums:
    """(Σ ‖Q_i‖, Σ ‖Q_i‖ Q_i), the second as Wq Σ ‖Q_i‖ x_i + (Σ ‖Q_i‖) bq: e = d."""
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
        return Sums(weight * largest, weighted * largest.unsqueeze(-1))


def mean_query(total: Sums) -> Tensor:
    """qbar = Σ ‖Q_i‖ Q_i / (Σ ‖Q_i‖ + eps), from the query sums of all tokens: (B, H, d)."""
    return total.weighted / (total.weight + EPS).unsqueeze(-1)


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


def token_sums(x: Tensor, qbar: Tensor, Wk: Tensor, bk: Tensor | None, padding: Tensor | None = None) -> Sums:
    """(Σ a~_j, Σ a~_j x_j) with a~_j = relu(qbar · K_j / d): e = D."""
    scores, unit = token_scores(x, qbar, Wk, bk, padding)
    with without_autocast(x):
        w, largest = relative(scores)
        factor = largest.to(sum_dtype(x)) * unit
        weighted = (w @ x.to(w.dtype)).to(factor.dtype)
        return Sums(w.sum(-1, dtype=factor.dtype) * factor, weighted * factor.unsqueeze(-1))


def relative(w: Tensor) -> tuple[Tensor, Tensor]:
    """w divided by its largest magnitude, and that magnitude, detached: (..., N) → (..., N), (...)."""
    largest = largest_entry(w, -1)
    return w / largest, largest.squeeze(-1)


def per_head(pooled: Tensor, W: Tensor, heads: int) -> Tensor:
    """Each head's rows of W (D, D) applied to its own vector: (B, H, D) → (B, H, d)."""
    return torch.einsum("bhD,hdD->bhd", pooled, W.to(pooled.dtype).unflatten(0, (heads, -1)))


def sum_chunks(parts: Callable[[Tensor, Tensor | None], Sums], x: Tensor, padding: Tensor | None, chunk: int) -> Sums:
    """The sums of `parts(x, padding)` over `chunk` tokens at a time."""
    chunks = (slice(start, start + chunk) for start in range(0, x.shape[1], chunk))
    return reduce(add, (parts(x[:, here], None if padding is None else padding[:, here]) for here in chunks))
