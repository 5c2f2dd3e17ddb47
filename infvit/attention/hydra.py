"""Hydra attention: as many heads as channels (arXiv:2209.07484)."""

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.layer import EPS, Masks, without_autocast
from infvit.attention.token_attention import TokenAttention
from infvit.attention.tokens import drop_tokens, precise, zero_padding


class HydraAttention(TokenAttention):
    """O_i = Q̂_i ⊙ Σ_j K̂_j ⊙ V_j with Q̂, K̂ the rows of Q, K divided by their norms: O(N D) time, a state of D numbers.

    Each channel is a head of width 1, so `num_heads` has no effect; norms are over all D channels. `attn_drop` drops
    whole tokens.
    """

    name, paper = "hydra", "arXiv:2209.07484"
    time, memory, state = "O(N D)", "O(N D)", "d"

    @property
    def weight_heads(self) -> int:
        """One head per channel."""
        return self.dim

    def split_heads(self, packed: Tensor) -> tuple[Tensor, ...]:
        """One head per channel: (B, N, n D) → n times (B, D, N, 1)."""
        return packed.unflatten(-1, (-1, self.dim, 1)).permute(2, 0, 3, 1, 4).unbind()

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        with without_autocast(V):
            state = (_unit(zero_padding(K, masks)) * drop_tokens(precise(V), self.attn_drop)).sum(-2, keepdim=True)
            return (_unit(Q) * state).to(V.dtype)

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """Of each channel, of either sign: (B, D, n, N)."""
        with without_autocast(Q):
            return _unit(Q) @ _unit(zero_padding(K, masks)).mT


def _unit(x: Tensor) -> Tensor:
    """(B, D, N, 1) with norm 1 over D."""
    return F.normalize(precise(x), dim=1, eps=EPS)
