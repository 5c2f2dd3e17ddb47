"""Base of linear attentions: a kernel phi(q) · phi(k) in place of exp(q · k), summed over the tokens first."""

from torch import Tensor

from infvit.attention.layer import Masks, without_autocast
from infvit.attention.token_attention import TokenAttention
from infvit.attention.tokens import drop_tokens, precise, zero_padding

TINY = 1e-12
"""Lower bound of the normaliser: a token whose weights are all 0 gets 0."""


class KernelAttention(TokenAttention):
    """O(N) time and memory: the sums over tokens are a (features × d) and a (features) state per head.

        O_i = Σ_j phi(Q_i) · phi(K_j) V_j / Σ_j phi(Q_i) · phi(K_j)

    computed as phi(Q) (phi(K)ᵀ V) / (phi(Q) · Σ phi(K)). A subclass implements `features`. `attn_drop` drops whole
    tokens.
    """

    time, memory, state = "O(N D d)", "O(N D)", "d² + d"

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """phi(Q), phi(K) ≥ 0, (B, H, n, features) and (B, H, N, features).

        Args:
            Q: of the first n tokens, (B, H, n, d), float32 or better.
            K: of all tokens, (B, H, N, d).
            masks: of the call.
        """
        raise NotImplementedError

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        with without_autocast(V):
            return mean_by_kernel(*self._features(Q, K, masks), drop_tokens(precise(V), self.attn_drop)).to(V.dtype)

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """Rows sum to 1 or 0."""
        with without_autocast(Q):
            return kernel_weights(*self._features(Q, K, masks))

    def _features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        phi_Q, phi_K = self.features(precise(Q), precise(K), masks)
        return phi_Q, zero_padding(phi_K, masks)


def mean_by_kernel(phi_Q: Tensor, phi_K: Tensor, V: Tensor) -> Tensor:
    """The mean of V with weights phi(Q_i) · phi(K_j), in O(N): (..., n, f), (..., N, f), (..., N, e) → (..., n, e)."""
    total = phi_Q @ phi_K.sum(-2, keepdim=True).mT
    return phi_Q @ (phi_K.mT @ V) / total.clamp_min(TINY)


def kernel_weights(phi_Q: Tensor, phi_K: Tensor) -> Tensor:
    """The weights of that mean, rows summing to 1 or 0: (..., n, f), (..., N, f) → (..., n, N)."""
    weights = phi_Q @ phi_K.mT
    return weights / weights.sum(-1, keepdim=True).clamp_min(TINY)
