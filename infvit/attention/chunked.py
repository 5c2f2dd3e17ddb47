"""Linear-InfSA's sums, a chunk of tokens at a time, forward and backward: extra memory independent of N.

A custom operator of torch, so that torch.compile does not trace into it and FlopCounterMode counts it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from infvit.attention.layer import EPS, precision, without_autocast
from infvit.attention.sums import (
    Sums,
    mean_query,
    query_sums,
    relative,
    row_norms,
    split_qkv,
    sum_chunks,
    sum_dtype,
    token_scores,
    token_sums,
)


def _both(
    x: Tensor, W: Tensor, b: Tensor | None, padding: Tensor | None, heads: int, chunk: int
) -> tuple[Sums, Sums, Tensor]:
    """The query sums, the token sums and qbar."""
    Wq, Wk, _, bq, bk, _ = split_qkv(W, b)
    first = sum_chunks(lambda x, p: query_sums(x, Wq, bq, heads, p), x, padding, chunk)
    qbar = mean_query(first)
    return first, sum_chunks(lambda x, p: token_sums(x, qbar, Wk, bk, p), x, padding, chunk), qbar


@torch.library.custom_op("infvit::pool", mutates_args=())
def pool(
    x: Tensor, W: Tensor, b: Tensor | None, padding: Tensor | None, heads: int, chunk: int
) -> tuple[Tensor, Tensor]:
    """The token sums of Linear-InfSA over all tokens, `chunk` at a time.

    Args:
        x: (B, N, D).
        W, b: the packed projections of q, k, v, (3 D, D) and (3 D,).
        padding: bool (B, N), True for padding.

    Returns:
        Σ a~_j (B, H) and Σ a~_j x_j (B, H, D), in float64.
    """
    with without_autocast(x):  # the backward pass recomputes Q and must get the same values
        _, total, _ = _both(x, W, b, padding, heads, chunk)
    return total.weight, total.weighted


@torch.library.custom_op("infvit::pool_backward", mutates_args=())
def pool_backward(
    grad_weight: Tensor,
    grad_weighted: Tensor,
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    padding: Tensor | None,
    heads: int,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to x, W and b (zeros without b). Recomputes the forward sums."""
    Wq, Wk, _, bq, bk, _ = split_qkv(W, b)
    D, d, dtype = x.shape[-1], x.shape[-1] // heads, precision(x)
    chunks = [slice(start, start + chunk) for start in range(0, x.shape[1], chunk)]
    first, _, qbar = _both(x, W, b, padding, heads, chunk)
    dx = torch.empty_like(x)
    dW, db = torch.zeros_like(W, dtype=dtype), torch.zeros(3 * D, dtype=dtype, device=x.device)

    # Token sums. With q = qbar / m the scores are m s, s = relu((u · x + c) / d), u = Wkᵀ q, c = q · bk.
    q, m = relative(qbar)
    q = q.to(dtype)
    Wk_h, bk_h = Wk.to(dtype).unflatten(0, (heads, d)), None if bk is None else bk.to(dtype).view(heads, d)
    u = torch.einsum("bhd,hdD->bhD", q, Wk_h)
    h0, h1 = ((t * m.view(m.shape + (1,) * (t.ndim - 2))).to(dtype) for t in (grad_weight, grad_weighted))
    du, dc = torch.zeros_like(u), torch.zeros_like(h0)
    for here in chunks:
        tokens = x[:, here].to(dtype)
        s, _ = token_scores(x[:, here], qbar, Wk, bk, None if padding is None else padding[:, here])
        ds = (h0.unsqueeze(-1) + h1 @ tokens.mT).masked_fill(s == 0, 0) / d
        dx[:, here] = s.mT @ h1 + ds.mT @ u
        du += ds @ tokens
        dc += ds.sum(-1)
    dq = torch.einsum("bhD,hdD->bhd", du, Wk_h)
    dW[D : 2 * D] = torch.einsum("bhd,bhD->hdD", q, du).flatten(0, 1)
    if bk_h is not None:
        dq += dc.unsqueeze(-1) * bk_h
        db[D : 2 * D] = (q * dc.unsqueeze(-1)).sum(0).flatten()

    # Query sums, n = ‖Q‖. In units of S = Σ n: dQ = g0 Q/n + n/S ((Q/n · g1) Q/n + g1), g1 = S d(Σ n Q).
    dqbar = dq.to(sum_dtype(x)) / m.unsqueeze(-1)
    S = first.weight + EPS
    g0 = (-(dqbar * qbar).sum(-1) / S).to(dtype)
    g1 = dqbar.to(dtype)
    for here in chunks:
        tokens = x[:, here]
        Q = F.linear(tokens, Wq, bq).unflatten(-1, (heads, d))
        n = row_norms(Q).to(sum_dtype(x))
        unit = Q.to(dtype) / torch.where(n == 0, 1, n).unsqueeze(-1).to(dtype)
        along = torch.einsum("bnhd,bhd->bnh", unit, g1)
        share = (n / S.unsqueeze(1)).to(dtype)
        dQ = (g0.unsqueeze(1) + share * along).unsqueeze(-1) * unit + share.unsqueeze(-1) * g1.unsqueeze(1)
        if padding is not None:
            dQ = dQ.masked_fill(padding[:, here, None, None], 0)
        dQ = dQ.flatten(2).to(x.dtype)
        dx[:, here] += dQ @ Wq
        dW[:D] += dQ.flatten(0, 1).T @ tokens.flatten(0, 1)
        db[:D] += dQ.sum((0, 1), dtype=dtype)
    return dx, dW.to(W.dtype), db.to(W.dtype)


@pool.register_fake
def _(x: Tensor, W: Tensor, b: Any, padding: Any, heads: int, chunk: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    B, _, D = x.shape
    return x.new_empty(B, heads, dtype=sum_dtype(x)), x.new_empty(B, heads, D, dtype=sum_dtype(x))


@pool_backward.register_fake
def _(grad_weight: Tensor, grad_weighted: Tensor, x: Tensor, W: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(x), torch.empty_like(W), W.new_empty(len(W))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    *tensors, ctx.heads, ctx.chunk = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_weight: Tensor, grad_weighted: Tensor) -> tuple[Tensor | None, ...]:
    dx, dW, db = pool_backward(grad_weight, grad_weighted, *ctx.saved_tensors, ctx.heads, ctx.chunk)
    return dx, dW, None if ctx.saved_tensors[2] is None else db, None, None, None


pool.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.infvit.pool)
def _flops(x: Any, W: Any, b: Any, padding: Any, heads: int, *_: Any, **__: Any) -> int:  # noqa: ARG001
    """Q, then Σ ‖Q‖ x, the scores and Σ a~ x of each head."""
    B, N, D = x
    return 2 * B * N * D * (D + 3 * heads)


@register_flop_formula(torch.ops.infvit.pool_backward)
def _backward_flops(*arguments: Any, **_: Any) -> int:
    """The forward pass again, then Q and the scores; dQ Wq, dQᵀ x, and five products of each head."""
    (B, N, D), heads = arguments[2], arguments[6]
    return 2 * B * N * D * (4 * D + 9 * heads)
