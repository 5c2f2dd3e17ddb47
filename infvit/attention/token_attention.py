"""What attentions share in which a token asks for itself: its output needs no other token's query."""

from torch import Tensor

from infvit.attention.layer import K_AND_V, Q_ALONE, Attention, Masks


class QueryAttention(Attention):
    """An operator of the family writes `mix` and `weigh`; what overrides `attend` instead must override `first` too."""

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        """O of the first n tokens in V's dtype, (B, H, n, d), from their Q and K, V of all, (B, H, N, d)."""
        raise NotImplementedError

    def attend(self, x: Tensor, masks: Masks) -> Tensor:
        return self.merge(self.mix(*self.heads(x), masks))

    def first(self, x: Tensor) -> Tensor:
        """`forward(x)[:, :1]` with keys and values of all tokens, and query, weights and output of one."""
        self._check_tokens(x)
        (Q,), (K, V) = self.projected(x[:, :1], Q_ALONE), self.projected(x, K_AND_V)
        return self.merge(self.mix(Q, K, V, Masks()))
