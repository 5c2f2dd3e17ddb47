"""Agent attention: softmax attention in two steps, through a few pooled queries (arXiv:2312.08874)."""

import math
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.layer import Attention, Masks, without_autocast
from infvit.attention.locality import square_side
from infvit.attention.tokens import drop_tokens, masked_softmax, precise, segment_means
from infvit.errors import UsageError, expect


class AgentAttention(Attention):
    """O = softmax(Q Aᵀ / √d) (softmax(A Kᵀ / √d) V), A the m agents, means of the queries: O(N m) time and memory.

    With `grid` the agents are the means of √m × √m windows of the grid of patches, as published (adaptive average
    pooling). The grid follows from the number of tokens: a square, or a square and one class token, which is in no
    window. Any other number is refused, and so is padding. Without `grid` they are the means of m segments of the
    sequence, as in NystromAttention; padding is in no segment. With fewer tokens than agents each is one.

    Left out are the paper's learned position biases in both softmaxes; its depthwise convolution of V is `locality=3`.
    `attn_drop` drops whole tokens.

    Args:
        agents: m; 49 in the paper's DeiT.
        grid: whether agents are windows of the grid of patches; needs a square m.

    Raises:
        UsageError: if agents is out of range.
    """

    name, paper = "agent", "arXiv:2312.08874"
    time, memory, state = "O(N D m)", "O(N H m)", "2 m d"

    def __init__(self, dim: int, num_heads: int = 8, *, agents: int = 49, grid: bool = False, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        fits = agents >= 1 and (not grid or math.isqrt(agents) ** 2 == agents)
        expect(fits, f"agents={agents}, grid={grid}", "at least 1, and a square number with grid=True")
        self.agents, self.grid = agents, grid

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        Q, K, V = self.heads(x)
        with without_autocast(x):
            to_tokens, to_agents = self._kernels(Q, K, masks, first)
            return (to_tokens @ (to_agents @ drop_tokens(precise(V), self.attn_drop))).to(V.dtype), V

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """softmax(Q Aᵀ / √d) softmax(A Kᵀ / √d), (B, H, N, N), rows sum to 1."""
        Q, K, _ = self.heads(x)
        with without_autocast(x):
            to_tokens, to_agents = self._kernels(Q, K, masks)
            return to_tokens @ to_agents

    def _kernels(self, Q: Tensor, K: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        """softmax(Q Aᵀ / √d) of the `first` tokens or of all, (B, H, N, m), and softmax(A Kᵀ / √d), (B, H, m, N)."""
        Q, K = precise(Q), precise(K)
        A, none = self._windows(Q, masks) if self.grid else self._segments(Q, masks)
        scaled = A.mT * self.head_dim**-0.5
        return masked_softmax(Q[:, :, :first] @ scaled, none), masked_softmax((K @ scaled).mT, masks.hidden(K[:, 0]))

    def _segments(self, Q: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """The means of Q over segments, (B, H, m, d), and which agents an image with padding has no token for."""
        (A,), none = segment_means((Q,), self.agents, masks)
        return A, none.mT

    def _windows(self, Q: Tensor, masks: Masks) -> tuple[Tensor, None]:
        """The means of Q over windows of the grid of patches, (B, H, m, d)."""
        if masks.key_padding_mask is not None:
            raise UsageError("AgentAttention cannot honour key_padding_mask with windows of a grid: use grid=False")
        side = square_side(Q.shape[-2], "the windows of AgentAttention need: use square images, or grid=False")
        patches = Q[:, :, -(side**2) :].mT.unflatten(-1, (side, side)).flatten(0, 1)
        means = F.adaptive_avg_pool2d(patches, min(side, math.isqrt(self.agents)))
        return means.flatten(2).unflatten(0, Q.shape[:2]).mT, None
