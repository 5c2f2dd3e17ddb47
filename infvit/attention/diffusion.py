"""relu(Q Kᵀ) W and ‖relu(Q Kᵀ)‖_F² without the N × N matrix: a diffusion step in blocks of rows, both directions.

Both directions make a block of rows of A, use it and overwrite it; the backward pass makes the blocks anew. Memory
beyond inputs and outputs is two blocks. Registered as operators of torch, so that torch.compile traces past them
without a graph break and FlopCounterMode counts them.
"""

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

BLOCK_ELEMENTS = 2**24
"""Numbers in one block over all images and heads: 64 MiB in float32."""


def rows_per_block(images: int, heads: int, tokens: int) -> int:
    """How many rows of every head's A make one block."""
    return max(min(BLOCK_ELEMENTS // (images * heads * tokens), tokens), 1)


@torch.library.custom_op("infvit::diffuse", mutates_args=())
def diffuse(Q: Tensor, K: Tensor, W: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """A W and ‖A‖_F² for A = relu(Q Kᵀ), `rows` rows of A at a time.

    Q, K (G, N, d) and W (G, N, e) → (G, N, e) in W's dtype and (G,) in float32 or better; G counts images times heads.
    """
    U = torch.empty_like(W)
    squares = Q.new_zeros(len(Q), dtype=_precise(Q))
    block = Q.new_empty(len(Q), min(rows, Q.shape[1]), K.shape[1])
    for start in range(0, Q.shape[1], rows):
        A = _affinities(Q[:, start : start + rows], K, block)
        squares += torch.linalg.vector_norm(A.flatten(1), dim=1, dtype=squares.dtype).square()
        U[:, start : start + rows] = A @ W
    return U, squares


@torch.library.custom_op("infvit::diffuse_backward", mutates_args=())
def diffuse_backward(
    Q: Tensor, K: Tensor, W: Tensor, grad_U: Tensor, grad_squares: Tensor, rows: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to Q, K and W; sums over blocks are in float32 or better."""
    dQ = torch.empty_like(Q)
    dK = torch.zeros_like(K, dtype=_precise(K))
    dW = torch.zeros_like(W, dtype=_precise(W))
    shape = (len(Q), min(rows, Q.shape[1]), K.shape[1])
    block, other = Q.new_empty(shape), Q.new_empty(shape)
    doubled = (2 * grad_squares)[:, None, None].to(Q.dtype)
    for start in range(0, Q.shape[1], rows):
        part = slice(start, start + rows)
        A = _affinities(Q[:, part], K, block)
        dW += A.mT @ grad_U[:, part]
        dA = torch.bmm(grad_U[:, part], W.mT, out=other[:, : A.shape[1]])
        dA.addcmul_(A, doubled.expand_as(A)).masked_fill_(A == 0, 0)
        dQ[:, part] = dA @ K
        dK += dA.mT @ Q[:, part]
    return dQ, dK.to(K.dtype), dW.to(W.dtype)


def _affinities(Q: Tensor, K: Tensor, block: Tensor) -> Tensor:
    """relu(Q Kᵀ) of some rows, (G, rows, N), written into the first rows of `block`."""
    return torch.bmm(Q, K.mT, out=block[:, : Q.shape[1]]).relu_()


def _precise(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


@diffuse.register_fake
def _(Q: Tensor, K: Tensor, W: Tensor, rows: int) -> tuple[Tensor, Tensor]:  # noqa: ARG001
    return torch.empty_like(W), Q.new_empty(len(Q), dtype=_precise(Q))


@diffuse_backward.register_fake
def _(
    Q: Tensor,
    K: Tensor,
    W: Tensor,
    grad_U: Tensor,  # noqa: ARG001
    grad_squares: Tensor,  # noqa: ARG001
    rows: int,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(Q), torch.empty_like(K), torch.empty_like(W)


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, int], output: tuple[Tensor, Tensor]) -> None:  # noqa: ARG001
    *tensors, ctx.rows = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, grad_U: Tensor, grad_squares: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
    return *diffuse_backward(*ctx.saved_tensors, grad_U.contiguous(), grad_squares, ctx.rows), None


diffuse.register_autograd(_backward, setup_context=_save)


@register_flop_formula(torch.ops.infvit.diffuse)
def _flops(Q: Any, K: Any, W: Any, *_: Any, **__: Any) -> int:
    (G, N, d), M, e = Q, K[1], W[2]
    return 2 * G * N * M * (d + e)


@register_flop_formula(torch.ops.infvit.diffuse_backward)
def _backward_flops(Q: Any, K: Any, W: Any, *_: Any, **__: Any) -> int:
    (G, N, d), M, e = Q, K[1], W[2]
    return 2 * G * N * M * (3 * d + 2 * e)  # the affinities made anew, dQ, dK, and through W twice
