"""No attention: the floor that every attention must beat."""

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.layer import Attention, Masks
from infvit.attention.tokens import drop_tokens
from infvit.errors import UsageError


class NoAttention(Attention):
    """O = V: no token learns of another. (q and k are parameters all the same, and never used.)

    What a model with it reaches, it reaches by what each patch shows alone and by its pooling: by the mean over
    patches, a bag of patches; by a class token, which no patch can tell anything, nothing but chance.
    """

    def attend(self, x: Tensor, masks: Masks) -> Tensor:
        D, H, bias = self.dim, self.num_heads, self.qkv.bias
        V = F.linear(x, self.qkv.weight[2 * D :], None if bias is None else bias[2 * D :])
        return self.merge(drop_tokens(V.unflatten(-1, (H, D // H)).transpose(1, 2), self.attn_drop))

    def weigh(self, x: Tensor, masks: Masks) -> Tensor:
        """Raises UsageError: no token weighs another."""
        raise UsageError(
            "NoAttention weighs no token with another: all it offers is its output, `layer(x)`, token by token"
        )
