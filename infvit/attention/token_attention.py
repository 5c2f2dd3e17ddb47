"""Base of the operators in which the output of a token depends on its own query and on the keys and values of all."""

from torch import Tensor

from infvit.attention.layer import K_AND_V, Q_ALONE, Attention, Masks


class TokenAttention(Attention):
    """A subclass implements `matrix` and, unless it holds that in memory, `mix`."""

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """`weights` of the first n tokens, (B, H, n, N), from their Q, (B, H, n, d), and K of all, (B, H, N, d)."""
        raise NotImplementedError

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        """O of the first n tokens in V's dtype, (B, H, n, d), from their Q and from K, V of all, (B, H, N, d)."""
        return self.attn_drop(self.matrix(Q, K, masks)) @ V

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        if first is None:
            Q, K, V = self.heads(x)
        else:
            (Q,), (K, V) = self.project(x[:, :first], Q_ALONE), self.project(x, K_AND_V)
        return self.mix(Q, K, V, masks), V

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        Q, K, _ = self.heads(x)
        return self.matrix(Q, K, masks)
