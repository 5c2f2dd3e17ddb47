"""InLine: linear attention normalised by subtraction, not by division (arXiv:2412.06590)."""

from torch import Tensor

from infvit.attention.layer import Masks, without_autocast
from infvit.attention.token_attention import TokenAttention
from infvit.attention.tokens import drop_tokens, precise, sequence_index, zero_padding


class InLineAttention(TokenAttention):
    """O_i = Σ_j (1 + s_ij − mean_j s_ij) V_j / N with s_ij = Q_i · K_j / √d: rows of weights of either sign, sum 1.

    Unlike a division by Σ_j s_ij it keeps different queries apart (injective). Computed as the mean of V plus
    Q ((K − mean K)ᵀ V) / (N √d). The kernel is the identity, and √d and N divide the scores, as in the published code.
    Left out is the paper's local term, a 3 × 3 depthwise convolution of V whose filters a small network computes from
    the mean token. `attn_drop` drops whole tokens. Padding does not count in N and the means.
    """

    name, paper = "inline", "arXiv:2412.06590"
    time, memory, state = "O(N D d)", "O(N D)", "d² + 2 d"

    def mix(self, Q: Tensor, K: Tensor, V: Tensor, masks: Masks) -> Tensor:
        with without_autocast(V):
            centred, count = self._centred(K, masks)
            dropped = drop_tokens(zero_padding(precise(V), masks), self.attn_drop)
            state = centred.mT @ dropped / count
            return (dropped.sum(-2, keepdim=True) / count + precise(Q) @ state).to(V.dtype)

    def matrix(self, Q: Tensor, K: Tensor, masks: Masks) -> Tensor:
        """Of either sign; rows sum to 1."""
        with without_autocast(Q):
            centred, count = self._centred(K, masks)
            weights = (1 + precise(Q) @ centred.mT) / count
            return zero_padding(weights.mT, masks).mT

    def _centred(self, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """(K − mean K) / √d, (B, H, N, d), 0 at padding, and the number of tokens, (B or 1, 1, 1, 1)."""
        count = sequence_index(K[:, 0], masks)[1][:, :, None, None].to(precise(K).dtype)
        K = zero_padding(precise(K), masks)
        return zero_padding(K - K.sum(-2, keepdim=True) / count, masks) * self.head_dim**-0.5, count
