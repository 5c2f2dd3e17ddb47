"""No attention: the floor that every attention must beat."""

from torch import Tensor

from infvit.attention.layer import V_ALONE, Attention, Masks
from infvit.attention.tokens import drop_tokens
from infvit.errors import UsageError


class NoAttention(Attention):
    """O = V: no token learns of another. (q and k are parameters all the same, and never used.)

    What a model with it reaches, it reaches by what each patch shows alone and by its pooling: by the mean over
    patches, a bag of patches; by a class token, which no patch can tell anything, nothing but chance.
    """

    def attend(self, x: Tensor, masks: Masks) -> Tensor:
        (V,) = self.projected(x, V_ALONE)
        return self.merge(drop_tokens(V, self.attn_drop))

    def first(self, x: Tensor) -> Tensor:
        """`forward(x)[:, :1]`, of that token alone."""
        return self(x[:, :1])

    def weigh(self, x: Tensor, masks: Masks) -> Tensor:
        """Raises UsageError: no token weighs another."""
        raise UsageError(
            "NoAttention weighs no token with another: all it offers is its output, `layer(x)`, token by token"
        )
