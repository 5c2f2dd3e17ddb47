"""Performer: softmax attention by positive orthogonal random features, FAVOR+ (arXiv:2009.14794)."""

import math

import torch
from torch import Tensor

from infvit.attention.kernel import KernelAttention
from infvit.attention.layer import Masks
from infvit.attention.rng import derived_seed
from infvit.errors import UsageError


class PerformerAttention(KernelAttention):
    """phi(x) = exp(w_r · x' − ‖x'‖² / 2) / √m for r = 1..m, x' = x / d^¼: E[phi(q) · phi(k)] = exp(q · k / √d).

    The directions w are orthogonal in blocks of d, with the lengths of normal vectors (`projection`, a buffer). In
    training they are drawn anew after every `redraw` forward passes, in evaluation they stay; each draw follows from
    the buffers `seed` and `calls`, so that a resumed run draws what an uninterrupted one does. Weights may be averaged,
    buffers not: the mean of two draws is none.

    Args:
        num_features: m; None for d ln d, the order that the paper's bound asks for.
        redraw: forward passes in training between two draws, 1000 in the published code; 0 for never.
    """

    projection: Tensor
    seed: Tensor
    calls: Tensor

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        num_features: int | None = None,
        redraw: int = 1000,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        d = self.head_dim
        m = max(math.ceil(d * math.log(d)), 1) if num_features is None else num_features
        if m < 1 or redraw < 0:
            raise UsageError(f"num_features={m}, redraw={redraw}: expected at least 1 feature and a redraw from 0")
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
        if masks.key_padding is not None:
            log_K = log_K.masked_fill(masks.key_padding[:, None, :, None], torch.finfo(log_K.dtype).min)
        # Any factor of a query, or of all keys of a head, cancels in the normalised weights: none overflows.
        log_Q = log_Q - log_Q.amax(-1, keepdim=True).detach()
        return log_Q.exp(), (log_K - log_K.amax((-2, -1), keepdim=True).detach()).exp()

    def _log_features(self, x: Tensor) -> Tensor:
        x = x * self.head_dim**-0.25
        # A copy: drawing anew before the backward pass must leave what that pass needs.
        return x @ self.projection.to(x.dtype, copy=True).mT - x.square().sum(-1, keepdim=True) / 2


def orthogonal_directions(m: int, d: int, seed: int) -> Tensor:
    """(m, d) on the CPU: rows orthogonal within each block of d, as long as rows of normal numbers are."""
    generator = torch.Generator().manual_seed(seed)
    blocks = torch.randn(math.ceil(m / d), d, d, generator=generator, device="cpu")
    directions = torch.linalg.qr(blocks).Q.mT.reshape(-1, d)[:m]
    return directions * torch.randn(m, d, generator=generator, device="cpu").norm(dim=-1, keepdim=True)


@torch.library.custom_op("infvit::redrawn", mutates_args=())
def redrawn(projection: Tensor, seed: Tensor, calls: Tensor, interval: int) -> Tensor:
    """The projection of this call: a new one at every multiple of `interval` but 0, otherwise the one before.

    An operator of its own, because a decision on a number in a tensor would break the graph of torch.compile.
    """
    call = int(calls)
    if call == 0 or call % interval:
        return projection.clone()
    m, d = projection.shape
    return orthogonal_directions(m, d, (int(seed) + call) % 2**63).to(projection)


@redrawn.register_fake
def _(projection: Tensor, seed: Tensor, calls: Tensor, interval: int) -> Tensor:  # noqa: ARG001
    return torch.empty_like(projection)
