"""Performer: softmax attention by positive orthogonal random features, FAVOR+ (arXiv:2009.14794)."""

import math
from typing import Any

import torch
from torch import Tensor

from infvit.attention.kernel import KernelAttention
from infvit.attention.layer import Masks
from infvit.attention.rng import derived_seed
from infvit.errors import expect


class PerformerAttention(KernelAttention):
    """phi(x) = exp(w_r · x' − ‖x'‖² / 2) / √m for r = 1..m, x' = x / d^¼: E[phi(q) · phi(k)] = exp(q · k / √d).

    The directions w are orthogonal in blocks of d, with the lengths of normal vectors (`projection`, a buffer). In
    training they are redrawn after every `redraw` forward passes, in evaluation they are fixed. Each draw depends only
    on the buffers `seed` and `calls`, so that a resumed run draws the same as an uninterrupted one.

    Args:
        num_features: m; None for d ln d, the order of the paper's bound.
        redraw: forward passes in training between two draws, 1000 in the published code; 0 disables it.

    Raises:
        UsageError: if num_features is below 1 or redraw negative.
    """

    name, paper = "performer", "arXiv:2009.14794"
    time, memory, state = "O(N D m)", "O(N H m)", "m (d + 1)"
    buffers_may_be_averaged = False  # the mean of two draws is not a draw

    projection: Tensor
    seed: Tensor
    calls: Tensor

    def __init__(
        self, dim: int, num_heads: int = 8, *, num_features: int | None = None, redraw: int = 1000, **kwargs: Any
    ) -> None:
        super().__init__(dim, num_heads, **kwargs)
        d = self.head_dim
        m = max(math.ceil(d * math.log(d)), 1) if num_features is None else num_features
        expect(m >= 1 and redraw >= 0, f"num_features={m}, redraw={redraw}", "at least 1 feature and a redraw from 0")
        self.redraw = redraw
        seed = derived_seed()
        self.register_buffer("projection", orthogonal_directions(m, d, seed).to(torch.get_default_device()))
        self.register_buffer("seed", torch.tensor(seed))
        self.register_buffer("calls", torch.tensor(0))

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        if self.training and self.redraw:
            self.projection.copy_(redrawn(self.projection, self.seed, self.calls, self.redraw))
            self.calls.add_(1)
        return super().mix(Q, K, V, masks)

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        log_Q, log_K = self._log_features(Q), self._log_features(K)
        if masks.key_padding_mask is not None:
            log_K = log_K.masked_fill(masks.key_padding_mask[:, None, :, None], torch.finfo(log_K.dtype).min)
        # A factor of a query, or of all keys of a head, cancels in the normalised weights: this avoids overflow.
        log_Q = log_Q - log_Q.amax(-1, keepdim=True).detach()
        return log_Q.exp(), (log_K - log_K.amax((-2, -1), keepdim=True).detach()).exp()

    def _log_features(self, x: Tensor) -> Tensor:
        x = x * self.head_dim**-0.25
        # A copy, because a redraw before the backward pass must not change the operand that it needs.
        return x @ self.projection.to(x.dtype, copy=True).mT - x.square().sum(-1, keepdim=True) / 2


def orthogonal_directions(m: int, d: int, seed: int) -> Tensor:
    """(m, d) on the CPU: rows orthogonal within each block of d, with the norms of normal vectors."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(math.ceil(m / d), d, d, generator=generator, device="cpu")
    directions = torch.linalg.qr(blocks).Q.mT.reshape(-1, d)[:m]
    return directions * torch.randn(m, d, generator=generator, device="cpu").norm(dim=-1, keepdim=True)


@torch.library.custom_op("infvit::redrawn", mutates_args=())
def redrawn(projection: Tensor, seed: Tensor, calls: Tensor, interval: int) -> Tensor:
    """The projection for this call: a new one at every multiple of `interval` but 0, otherwise the same.

    A custom operator, because branching on a tensor's value would break the graph of torch.compile.
    """
    call = int(calls)
    if call == 0 or call % interval:
        return projection.clone()
    m, d = projection.shape
    return orthogonal_directions(m, d, (int(seed) + call) % 2**63).to(projection)


@redrawn.register_fake
def _(projection: Tensor, seed: Tensor, calls: Tensor, interval: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(projection)
