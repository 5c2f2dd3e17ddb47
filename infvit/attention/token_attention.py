"""Base of the operators in which the output of a token depends on its own query and on the keys and values of all."""

from torch import Tensor

from infvit.attention.layer import K_AND_V, Q_ALONE, Attention, Masks


class TokenAttention(Attention):
    """A subclass implements `mix` and `_weights`; one that overrides `_forward` overrides `forward_class_token` too."""

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        """O of the first n tokens in V's dtype, (B, H, n, d), from their Q and from K, V of all, (B, H, N, d)."""
        raise NotImplementedError

    def _forward(self, x: Tensor, masks: Masks) -> Tensor:
        return self.merge_heads(self.mix(*self.heads(x), masks))

    def forward_class_token(self, x: Tensor) -> Tensor:
        """`forward(x)[:, :1]` with keys and values of all tokens, and query, weights and output of one."""
        self._check_tokens(x)
        (Q,), (K, V) = self.project(x[:, :1], Q_ALONE), self.project(x, K_AND_V)
        return self.merge_heads(self.mix(Q, K, V, Masks()))
