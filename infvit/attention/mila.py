"""MILA's gated linear attention (arXiv:2405.16605)."""

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.gated import GatedAttention
from infvit.attention.kernel import kernel_weights, mean_by_kernel
from infvit.attention.layer import Q_AND_K, V_ALONE, Masks, without_autocast
from infvit.attention.tokens import drop_tokens, precise, zero_padding


class MILAttention(GatedAttention):
    """O_i = silu(G_i) ⊙ Σ_j phi(Q_i) · phi(K_j) V_j / Σ_j phi(Q_i) · phi(K_j), phi = elu + 1, Q and K of the values.

        V = silu(x Wv + bv)      Q = V Wq + bq      K = V Wk + bk

    Mamba's block with linear attention in the place of its scan: as published, Q and K are projections of the activated
    values of all heads, and the gate G, linear in the token, is activated too. Left out is what the paper has in
    the place of Mamba's forget gate, the rotary position embedding of phi(Q) and phi(K) in the numerator and a
    depthwise convolution of V before the gate (LePE; `locality` is one after it), and its other convolutions: before
    the activation of V, and of the tokens before attention and MLP. `attn_drop` drops whole tokens.
    """

    name, paper = "mila", "arXiv:2405.16605"
    time, memory, state = "O(N D d)", "O(N D)", "d² + d"

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        (V,) = self.project(x, V_ALONE)
        V = F.silu(V)
        Q, K = self.project(V.transpose(1, 2).flatten(2), Q_AND_K)
        return Q, K, V

    def mix(self, x: Tensor, masks: Masks, first: int | None) -> tuple[Tensor, Tensor]:
        Q, K, V = self.heads(x)
        with without_autocast(x):
            phi_Q, phi_K = self._features(Q[:, :, :first], K, masks)
            return mean_by_kernel(phi_Q, phi_K, drop_tokens(precise(V), self.attn_drop)).to(V.dtype), V

    def matrices(self, x: Tensor, masks: Masks) -> Tensor:
        Q, K, _ = self.heads(x)
        with without_autocast(x):
            return kernel_weights(*self._features(Q, K, masks)).unsqueeze(2)

    def _features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        """phi(Q) and phi(K), the latter 0 at padding."""
        return F.elu(precise(Q)) + 1, zero_padding(F.elu(precise(K)) + 1, masks)

    def _gate(self, x: Tensor) -> Tensor:
        return F.silu(super()._gate(x))
