"""No attention: the lower bound for every operator."""

from torch import Tensor

from infvit.attention.layer import V_ALONE, Attention, Masks
from infvit.attention.tokens import drop_tokens


class NoAttention(Attention):
    """O = V: no information passes between tokens (q and k are parameters, but unused).

    A model with it sees each patch alone. With mean pooling it is a bag of patches; with a class token, which no patch
    reaches, it stays at chance.
    """

    name, time, memory, state, weighs = "none", "0", "0", "0", "nothing"

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor]:
        (V,) = self.project(x[:, :first], V_ALONE)
        return drop_tokens(V, self.attn_drop), V
