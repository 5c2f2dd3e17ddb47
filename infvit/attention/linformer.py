"""Linformer: keys and values projected along the tokens to a fixed number of rows (arXiv:2006.04768)."""

from typing import Any

import torch
from torch import Tensor, nn

from infvit.attention.layer import Masks, without_autocast
from infvit.attention.rng import independent_normal
from infvit.attention.token_attention import TokenAttention
from infvit.attention.tokens import precise, sequence_index
from infvit.errors import expect


class LinformerAttention(TokenAttention):
    """O = softmax(Q (E K)ᵀ / √d) (F V) with learned E, F (rank × N), shared by the heads: O(N rank) time and memory.

    E and F have one column for each of `tokens` tokens, as in the paper. For another number of tokens N they are
    interpolated linearly along the sequence and scaled by tokens / N, so that equal keys project to the same rows;
    that is this project's extension. Padding does not count in the sequence.

    Args:
        tokens: N of training, class token included; conf/model/linformer.yaml gives it from size and patch.
        rank: rows of E and F; None for a quarter of `tokens`, the paper's ratio for its sequences of 512.

    `key_value_projection` (2, rank, tokens) is E and F, initially normal with variance 1 / rank.

    Raises:
        UsageError: if tokens or rank is out of range.
    """

    name, paper = "linformer", "arXiv:2006.04768"
    time, memory, state = "O(N D k)", "O(N H k)", "2 k d"

    def __init__(
        self, dim: int, num_heads: int = 8, *, tokens: int = 197, rank: int | None = None, **kwargs: Any
    ) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(tokens >= 1, f"tokens={tokens}", "the number of tokens in training, at least 1")
        self.tokens, self.rank = tokens, max(tokens // 4, 1) if rank is None else rank
        expect(1 <= self.rank <= tokens, f"rank={rank}", f"1 to {tokens}, the number of tokens")
        self.key_value_projection = nn.Parameter(independent_normal(2, self.rank, tokens, std=self.rank**-0.5))

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        with without_autocast(V):
            E, F = self._projections(precise(V[:, 0]), masks)
            return (self.attn_drop(self._rows(Q, K, E)) @ (F @ precise(V))).to(V.dtype)

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """softmax(Q (E K)ᵀ / √d) F, of either sign."""
        with without_autocast(Q):
            E, F = self._projections(precise(K[:, 0]), masks)
            return self._rows(Q, K, E) @ F

    def _rows(self, Q: Tensor, K: Tensor, E: Tensor) -> Tensor:
        return (precise(Q) * self.head_dim**-0.5 @ (E @ precise(K)).mT).softmax(-1)

    def _projections(self, x: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """E and F at the sequence indices of the tokens, each (B or 1, 1, rank, N), 0 at padding."""
        index, count = sequence_index(x, masks)
        ratio = self.tokens / count.to(x.dtype)
        at = ((index + 0.5) * ratio - 0.5).clamp(0, self.tokens - 1)
        below = at.floor()
        above = (below + 1).clamp_max(self.tokens - 1)
        learned = self.key_value_projection.to(x.dtype)
        read = torch.lerp(learned[:, :, below.long()], learned[:, :, above.long()], at - below) * ratio
        if masks.key_padding_mask is not None:
            read = read.masked_fill(masks.key_padding_mask, 0)
        E, F = read.transpose(1, 2).unsqueeze(2)
        return E, F
