"""RALA: linear attention with weighted keys and gated outputs, which raise its rank (arXiv:2411.07635)."""

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.gated import GatedAttention
from infvit.attention.kernel import kernel_weights, mean_by_kernel
from infvit.attention.layer import Q_AND_K, Masks, without_autocast
from infvit.attention.tokens import drop_tokens, masked_softmax, precise, sequence_index, zero_padding


class RALAttention(GatedAttention):
    """O_i = G_i ⊙ Σ_j phi(Q_i) · α_j phi(K_j) V_j / Σ_j phi(Q_i) · α_j phi(K_j), phi = elu + 1: O(N) time and memory.

    α = N softmax_j(q · phi(K_j) / √d) with the global query q, the mean of phi(Q): keys near it count more in the d × d
    state. The gate G is the paper's modulation of the output, linear in the token. As in the published code, the
    denominator has α too.

    Left out of the published block are the rotary position embedding of phi(Q) and phi(K) in the numerator, the 5 × 5
    depthwise convolution of V that is added before the gate (`locality` adds one after it), and those of the tokens
    before attention and in the MLP; its last stages are softmax attention. `attn_drop` drops whole tokens. Padding does
    not count in N, α and q.
    """

    name, paper = "rala", "arXiv:2411.07635"
    time, memory, state = "O(N D d)", "O(N D)", "d² + 2 d"

    def mix(self, x: Tensor, masks: Masks, first: int | None) -> tuple[Tensor, Tensor]:
        Q, K, V = self.heads(x)
        with without_autocast(x):
            phi_Q, phi_K = self._features(Q, K, masks)
            return mean_by_kernel(phi_Q[:, :, :first], phi_K, drop_tokens(precise(V), self.attn_drop)).to(V.dtype), V

    def matrices(self, x: Tensor, masks: Masks) -> Tensor:
        Q, K = self.project(x, Q_AND_K)
        with without_autocast(x):
            return kernel_weights(*self._features(Q, K, masks)).unsqueeze(2)

    def _features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """phi(Q) and α phi(K), both (B, H, N, d), 0 at padding."""
        phi_Q, phi_K = (zero_padding(F.elu(precise(t)) + 1, masks) for t in (Q, K))
        count = sequence_index(Q[:, 0], masks)[1][:, :, None, None]
        query = phi_Q.sum(-2, keepdim=True) / count
        alpha = count * masked_softmax(query @ phi_K.mT * self.head_dim**-0.5, masks.hidden(K[:, 0]))
        return phi_Q, phi_K * alpha.mT
