"""Pure InfSA without the N × N matrix: Σ_{t=1..T} (gamma Ahat)ᵗ V in tiles, both directions, T up to infinity.

Forward and backward compute a tile of A, use it and overwrite it. Memory beyond inputs and outputs is two tiles and a
few (N, d) matrices per head. A custom operator of torch, so that torch.compile does not trace into it (without a graph
break) and FlopCounterMode counts it.
"""

import math
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.flop_counter import register_flop_formula

from infvit.attention.graph_tiles import GraphTiles, add_product, with_eps
from infvit.attention.layer import largest_entry, precision, without_autocast

INFINITE = 0
"""The operator's `hops` for the infinite series."""

MAX_ITERATIONS = 1000
"""Terms after which the iteration of the infinite series stops with a warning."""


class _Heads(NamedTuple):
    """Some heads of one image, computed together: their indices, their graph, and M = scale · A."""

    at: tuple[int, slice]
    graph: GraphTiles
    V: Tensor
    q: Tensor
    k: Tensor
    gamma: Tensor

    def scale(self, norm: Tensor) -> Tensor:
        """gamma / (‖A‖_F + eps) = M / A: (G, 1, 1)."""
        return self.gamma / with_eps(norm, self.q, self.k)


def _each(qkv: Tensor, gamma: Tensor, hidden: Tensor | None) -> Iterator[_Heads]:
    """All heads of all images: one at a time on a CPU, all of an image at once on an accelerator."""
    B, N, _, H, d = qkv.shape
    precise = precision(qkv)
    together = 1 if qkv.device.type == "cpu" else H
    for image in range(B):
        for first in range(0, H, together):
            heads = slice(first, min(first + together, H))
            Q, K, V = qkv[image, :, :, heads].permute(1, 2, 0, 3)
            q, k = (largest_entry(t, (-2, -1)).to(precise) for t in (Q, K))
            here = None if hidden is None else hidden.expand(B, H, N, N)[image, heads]
            graph = GraphTiles((Q / (q * d)).to(Q.dtype), (K / k).to(K.dtype), here)
            yield _Heads((image, heads), graph, V, q, k, gamma[heads, None, None].to(precise))


@torch.library.custom_op("infvit::diffuse", mutates_args=())
def diffuse(
    x: Tensor,
    W: Tensor,
    b: Tensor | None,
    gamma: Tensor,
    hops: int,
    tolerance: float,
    padding: Tensor | None,
    hidden: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """O = Σ_{t=1..hops} Mᵗ V with M = gamma A / (‖A‖_F + eps), A = relu(Q Kᵀ / d); per image and head.

    Includes the projections, so that the backward pass never holds the gradients of Q, K, V for all heads.

    Args:
        x: (B, N, D).
        W, b: the packed projections of q, k, v, (3 D, D) and (3 D,).
        gamma: (H,).
        hops: 1 or more, or `INFINITE`: iterated until the bound on the truncation error is `tolerance` ‖O‖_F.
        tolerance: see hops.
        padding: bool (B, N), True for padding.
        hidden: bool, broadcasts to (B, H, N, N), True where A is set to 0.

    Returns:
        O (B, N, H, d), and for the backward pass: Q, K, V (B, N, 3, H, d); ‖A‖_F in the units of the tiles, (B, H);
        V + M V + ... up to each hop but the last, (max(hops, 1) − 1, B, N, H, d).
    """
    B, N, D = x.shape
    H = len(gamma)
    with without_autocast(x):
        qkv = F.linear(x, W, b).view(B, N, 3, H, D // H)
        if padding is not None:
            qkv.masked_fill_(padding[..., None, None, None], 0)
        O = x.new_empty(B, N, H, D // H)  # noqa: E741
        norms = x.new_empty(B, H, dtype=precision(x))
        partial = x.new_empty(max(hops, 1) - 1, *O.shape)
        for heads in _each(qkv, gamma, hidden):
            image, which = heads.at
            U, norm = heads.graph.product_and_norm(heads.V)
            scale = heads.scale(norm)
            U *= scale
            for hop in range(hops - 1):
                Y = heads.V + U
                partial[hop, image, :, which] = Y.transpose(0, 1)
                U = heads.graph.product(Y).mul_(scale)
            if hops == INFINITE:
                U = _series(heads.graph.product, scale, U, norm, tolerance)
            O[image, :, which] = U.transpose(0, 1)
            norms[image, which] = norm[:, 0, 0]
    return O, qkv, norms, partial


@torch.library.custom_op("infvit::diffuse_backward", mutates_args=())
def diffuse_backward(
    grad_O: Tensor,
    x: Tensor,
    W: Tensor,
    gamma: Tensor,
    O: Tensor,  # noqa: E741
    qkv: Tensor,
    norms: Tensor,
    partial: Tensor,
    hops: int,
    tolerance: float,
    padding: Tensor | None,
    hidden: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients with respect to x, W, b and gamma.

    The series has dM = Σ_t g_t Y_{t-1}ᵀ with Y_t = V + M Y_{t-1}, g_hops = dO, g_{t-1} = Mᵀ g_t; its limit has one
    pair (Fᵀ dO, V + O), where Fᵀ dO is iterated with Mᵀ. From these pairs, one pass over the tiles gives dQ and dK, and
    dV = Mᵀ Σ_t g_t.
    """
    (*_, H, d), precise = qkv.shape, norms.dtype
    dx, dgamma = torch.zeros_like(x, dtype=precise), torch.zeros_like(gamma)
    dW, db = W.new_zeros(3, H, d, W.shape[1], dtype=precise), W.new_zeros(3, H, d, dtype=precise)
    with without_autocast(x):
        for heads in _each(qkv, gamma, hidden):
            image, which = heads.at
            g, out, *Ys = (t[image, :, which].transpose(0, 1) for t in (grad_O, O, *partial))
            norm = norms[image, which, None, None]
            rows, of_gamma = _of_heads(heads, g.to(precise), out.to(precise), Ys, norm, hops, tolerance)
            dgamma[which] += of_gamma.to(dgamma.dtype)
            if padding is not None:
                rows.masked_fill_(padding[image, :, None, None, None], 0)
            db[:, which] += rows.sum(0, dtype=precise)
            rows = rows.flatten(1)
            add_product(dx[image, None], rows[None], W.view(3, H, d, -1)[:, which].reshape(1, rows.shape[1], -1))
            dW[:, which] += (rows.T @ x[image]).view(3, -1, d, W.shape[1])
    return dx.to(x.dtype), dW.flatten(0, 2).to(W.dtype), db.flatten().to(W.dtype), dgamma


def _of_heads(
    heads: _Heads, g: Tensor, out: Tensor, Ys: list[Tensor], norm: Tensor, hops: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Gradients of the Q, K, V of some heads, (N, 3, G, d), and of their gamma, (G,), of one image."""
    graph, V, scale = heads.graph, heads.V, heads.scale(norm)
    N, d = V.shape[1:]
    Ys, gs = [V, *Ys], [g]
    if hops == INFINITE:
        Ys, gs = [V + out], [_series(graph.transposed_product, scale, g, norm, tolerance)]
    for _ in Ys[1:]:
        gs.insert(0, graph.transposed_product(gs[0]).mul_(scale))
    # ⟨dM, M⟩ = Σ_t ⟨g_t, M Y_{t-1}⟩, and M Y_{t-1} is known: Y_t − V, and O at the last.
    reached = (*(Y - V for Y in Ys[1:]), out)
    inner = torch.stack([(g * r).sum((-2, -1), keepdim=True) for g, r in zip(gs, reached, strict=True)]).sum(0)
    along = inner / with_eps(norm, heads.q, heads.k) / torch.where(norm == 0, 1, norm)
    dQ, dK, dV = _pass(graph, torch.cat(gs, -1).mul_(scale).to(V.dtype), torch.cat(Ys, -1).to(V.dtype), along, d)
    rows = V.new_empty(N, 3, len(V), d)
    for i, of_one in enumerate((dQ.div_(heads.q * d), dK.div_(heads.k), dV)):
        rows[:, i] = of_one.transpose(0, 1)
    return rows, (inner / heads.gamma)[:, 0, 0]


def _pass(graph: GraphTiles, G: Tensor, Y: Tensor, along: Tensor, d: int) -> tuple[Tensor, Tensor, Tensor]:
    """dQ, dK and dV of the scaled Q and K from dA = G Yᵀ − along · A, each (heads, N, d)."""
    summed = G.unflatten(-1, (-1, d)).sum(-2)
    dQ, dK, dV = graph.zeros(graph.Q), graph.zeros(graph.Q), graph.zeros(graph.Q)
    memory = torch.empty_like(graph.memory)
    for rows, columns, A in graph.tiles():
        add_product(dV[:, columns], A.mT, summed[:, rows])
        dA = torch.bmm(G[:, rows], Y[:, columns].mT, out=graph.like_tile(memory, rows, columns))
        dA.addcmul_(A, along.to(A.dtype).expand_as(A), value=-1)
        torch.ops.aten.threshold_backward.grad_input(dA, A, 0, grad_input=dA)
        add_product(dQ[:, rows], dA, graph.K[:, columns])
        add_product(dK[:, columns], dA.mT, graph.Q[:, rows])
    return dQ, dK, dV


def _series(
    product: Callable[[Tensor], Tensor], scale: Tensor, first: Tensor, norm: Tensor, tolerance: float
) -> Tensor:
    """first + M first + M² first + ..., M = scale · A by `product`, to a relative error of `tolerance`.

    Terms shrink by c = scale ‖A‖_F < 1 at least, so the error after a term is at most c / (1 − c) times that term. Each
    term comes from the one before and not from the sum, whose rounding errors would persist where c is near 1.
    """
    largest = largest_entry(first, (-2, -1))
    term, c = first / largest, scale * norm
    total = term.clone()
    for _ in range(MAX_ITERATIONS):
        term = product(term).mul_(scale)
        total += term
        missing = c / (1 - c) * torch.linalg.vector_norm(term, dim=(-2, -1), keepdim=True)
        if not (missing > tolerance * torch.linalg.vector_norm(total, dim=(-2, -1), keepdim=True)).any():
            return total.mul_(largest)
    warnings.warn(
        f"the series of all hops was stopped after {MAX_ITERATIONS} terms, with up to {missing.max():.1e} of the "
        "first missing in a head: gamma · ‖Ahat‖ is very near 1",
        RuntimeWarning,
        stacklevel=2,
    )
    return total.mul_(largest)


@diffuse.register_fake
def _(x: Tensor, W: Tensor, b: Any, gamma: Tensor, hops: int, *rest: Any) -> tuple[Tensor, ...]:  # noqa: ARG001
    (B, N, D), H = x.shape, len(gamma)
    norms = x.new_empty(B, H, dtype=precision(x))
    of_tokens = x.new_empty(B, N, H, D // H), x.new_empty(B, N, 3, H, D // H)
    return *of_tokens, norms, x.new_empty(max(hops, 1) - 1, B, N, H, D // H)


@diffuse_backward.register_fake
def _(grad_O: Tensor, x: Tensor, W: Tensor, gamma: Tensor, *rest: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(x), torch.empty_like(W), W.new_empty(len(W)), torch.empty_like(gamma)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, W, b, gamma, hops, tolerance, padding, hidden = inputs
    ctx.has_bias, ctx.settings = b is not None, (hops, tolerance)
    ctx.save_for_backward(x, W, gamma, *output, padding, hidden)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)  # no zero tensors for the missing gradients of Q, K, V


def _backward(ctx: Any, grad_O: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    if grad_O is None:
        return (None,) * 8
    *tensors, padding, hidden = ctx.saved_tensors
    dx, dW, db, dgamma = diffuse_backward(grad_O, *tensors, *ctx.settings, padding, hidden)
    return dx, dW, db if ctx.has_bias else None, dgamma, None, None, None, None


diffuse.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.infvit.diffuse)
def _flops(x: Any, W: Any, b: Any, gamma: Any, hops: int, *_: Any, **__: Any) -> float:  # noqa: ARG001
    """The projections; A and its product for every hop. NaN for the infinite series, whose length depends on x."""
    B, N, D = x
    return 2 * B * N * D * (3 * D + 2 * N * (hops or math.nan))


@register_flop_formula(torch.ops.infvit.diffuse_backward)
def _backward_flops(*arguments: Any, **_: Any) -> float:
    """Twice the projections; A and Aᵀ g for every hop but the first; then A, dQ, dK, dV, and dA of all hops."""
    (B, N, D), hops = arguments[1], arguments[8] or math.nan
    return 2 * B * N * D * (6 * D + N * (2 * (hops - 1) + 4 + hops))


def spectral_bound(qkv: Tensor, gamma: Tensor, hidden: Tensor | None = None) -> Tensor:
    """An upper bound on gamma ‖Ahat‖₂: (B, N, 3, H, d) → (B, H); no gradient. `gamma`, `hidden` as in `diffuse`."""
    B, _, _, H, _ = qkv.shape
    bound = qkv.new_empty(B, H, dtype=precision(qkv))
    with torch.no_grad(), without_autocast(qkv):
        for heads in _each(qkv, gamma, hidden):
            graph = heads.graph
            v = heads.V.new_ones(*heads.V.shape[:2], 1, dtype=graph.precise)
            norm = graph.product_and_norm(v)[1]
            square = norm.square()
            unit = torch.where(square == 0, 1, square)
            largest = collatz_wielandt(partial(_gram, graph, 1 / unit), v).sqrt() * norm
            bound[heads.at[0], heads.at[1]] = (heads.scale(norm) * largest)[:, 0, 0]
    return bound


def _gram(graph: GraphTiles, scale: Tensor, v: Tensor) -> Tensor:
    """scale · Aᵀ A v: (G, N, 1) → (G, N, 1)."""
    return scale * graph.transposed_product(graph.product(v))


def collatz_wielandt(S: Callable[[Tensor], Tensor], v: Tensor, rounds: int = 4) -> Tensor:
    """An upper bound on the largest eigenvalue of S = Aᵀ A, at most 1, for a nonnegative A with ‖A‖_F ≤ 1: (..., 1, 1).

    S is nonnegative, so the largest (S v)_i / v_i of any positive v bounds its spectral radius from above (Collatz and
    Wielandt); each step of power iteration tightens the bound. S maps (..., N, 1) to the same, v is a positive start.
    """
    for _ in range(rounds):
        Sv = S(v)
        largest = Sv.amax(-2, keepdim=True)
        # A part of v stays, so that every entry stays positive.
        rest = torch.where(largest == 0, 1, largest) / 2
        v = torch.addcmul(Sv, rest, v)
        for _ in range(4):
            v = torch.addcmul(S(v), rest, v)
        v = v / v.amax(-2, keepdim=True)
    return (S(v) / v).amax(-2, keepdim=True).clamp(max=1)
