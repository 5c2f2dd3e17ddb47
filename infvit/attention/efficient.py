"""Efficient attention: softmax of queries over features and of keys over tokens (arXiv:1812.01243)."""

from torch import Tensor

from infvit.attention.layer import Masks, without_autocast
from infvit.attention.token_attention import TokenAttention
from infvit.attention.tokens import drop_tokens, masked_softmax, precise


class EfficientAttention(TokenAttention):
    """O = softmax_features(Q) (softmax_tokens(K)ᵀ V): O(N) time, a d × d state per head, rows of weights sum to 1.

    `attn_drop` drops whole tokens.
    """

    name, paper = "efficient", "arXiv:1812.01243"
    time, memory, state = "O(N D d)", "O(N D)", "d²"

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        with without_autocast(V):
            state = _over_tokens(K, masks) @ drop_tokens(precise(V), self.attn_drop)
            return (precise(Q).softmax(-1) @ state).to(V.dtype)

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        with without_autocast(Q):
            return precise(Q).softmax(-1) @ _over_tokens(K, masks)


def _over_tokens(K: Tensor, masks: Masks) -> Tensor:
    """(B, H, N, d) → (B, H, d, N), each feature a distribution over the tokens."""
    padding = masks.key_padding_mask
    return masked_softmax(precise(K).mT, None if padding is None else padding[:, None, None, :])
