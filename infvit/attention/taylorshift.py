"""TaylorShift: softmax's second-order Taylor series, direct or in linear time (arXiv:2403.02920)."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.kernel import TINY, KernelAttention
from infvit.attention.layer import Masks, without_autocast
from infvit.attention.tokens import precise, sequence_index, zero_padding


class TaylorShiftAttention(KernelAttention):
    """O_i = √(N/d) Σ_j t(s_ij) V_j / Σ_j t(s_ij), t(s) = 1 + s + s²/2, s_ij = tau cos(Q_i, K_j), tau learned per head.

    t(q · k) is the product of the features (1, q, q ⊗ q / √2) of q and of k. With more than `crossover` tokens they are
    summed over the tokens first, as in other linear attentions, and with no more the N × N matrix takes less time: the
    same function. √(N/d) keeps the size of the outputs, as in the paper and in the linear form of its published code,
    whose direct form divides by it. tau is 1 initially.

    Nothing of the operator is left out; some of the paper's models embed patches by convolutions, which is not part of
    it. `attn_drop` drops weights of the matrix, and whole tokens in the linear form. Padding does not count in N.
    """

    name, paper = "taylorshift", "arXiv:2403.02920"
    time, memory, state = "O(N D d²)", "O(N D d)", "about d³"

    def __init__(self, dim: int, num_heads: int = 8, **kwargs: Any) -> None:
        super().__init__(dim, num_heads, **kwargs)
        self.temperature = nn.Parameter(torch.ones(num_heads))

    @property
    def crossover(self) -> int:
        """The number of tokens from which on the linear form takes less time, by the paper's count of operations."""
        return self.head_dim**2 + self.head_dim + 1

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        return taylor_features(self._queries(Q)), taylor_features(_unit(K))

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        with without_autocast(V):
            if K.shape[-2] > self.crossover:
                O = self._size(K, masks) * super().mix(Q, K, precise(V), masks)  # noqa: E741
            else:
                O = self.attn_drop(self.matrix(Q, K, masks)) @ precise(V)  # noqa: E741
            return O.to(V.dtype)

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """Rows sum to √(N/d)."""
        with without_autocast(Q):
            s = self._queries(precise(Q)) @ _unit(precise(K)).mT
            weights = zero_padding((1 + s + s.square() / 2).mT, masks).mT
            return self._size(K, masks) * weights / weights.sum(-1, keepdim=True).clamp_min(TINY)

    def _queries(self, Q: Tensor) -> Tensor:
        return self.temperature[:, None, None].to(Q.dtype) * _unit(Q)

    def _size(self, K: Tensor, masks: Masks) -> Tensor:
        """√(N/d), (B or 1, 1, 1, 1)."""
        count = sequence_index(K[:, 0], masks)[1][:, :, None, None]
        return (count.to(precise(K).dtype) / self.head_dim).sqrt()


def _unit(x: Tensor) -> Tensor:
    return F.normalize(x, dim=-1)


def taylor_features(x: Tensor) -> Tensor:
    """(1, x, x ⊗ x / √2), whose products are 1 + s + s²/2 with s = x · y: (..., d) → (..., 1 + d + d²)."""
    squares = (x.unsqueeze(-1) * x.unsqueeze(-2)).flatten(-2) * 0.5**0.5
    return torch.cat((torch.ones_like(x[..., :1]), x, squares), -1)
