"""What every attention layer shares: one signature, timm's parameter names, masks, and the learnable discount gamma."""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.errors import UsageError

Q_ALONE, Q_AND_K, K_AND_V, V_ALONE = slice(0, 1), slice(0, 2), slice(1, 3), slice(2, 3)
"""What `Attention.projected` may be asked for."""

EPS = 1e-6
"""Added to every norm that divides (arXiv:2603.00175)."""


def precision(x: Tensor) -> torch.dtype:
    """The precision of what is summed over tokens or normalised: x's own, and at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def largest_entry(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """max |x| along `dim`, which is kept; the least normal number where all is 0. Without a gradient: a unit.

    What knows no scale is computed of x over this, because squares of 1e30 overflow and of 1e-30 vanish.
    """
    x = x.detach()
    return torch.linalg.vector_norm(x, torch.inf, dim=dim, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Operations inside keep the precision of their operands (meta tensors know no autocast)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is on for the device that x is on."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


class Masks(NamedTuple):
    """What a layer was told to leave out, checked; see `Attention.forward`."""

    key_padding: Tensor | None = None
    attn: Tensor | None = None
    is_causal: bool = False

    def hidden(self, x: Tensor) -> Tensor | None:
        """All of it as one mask, (B or 1, H or 1, N or 1, N), True where token i does not see j; None for none."""
        hidden = None if self.key_padding is None else self.key_padding[:, None, None, :]
        if self.attn is not None:
            attn = self.attn.unsqueeze(1) if self.attn.ndim == 3 else self.attn
            attn = attn[None, None] if attn.ndim == 2 else attn
            hidden = attn if hidden is None else hidden | attn
        if self.is_causal:
            future = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)[None, None]
            hidden = future if hidden is None else hidden | future
        return hidden

    @property
    def only_attn(self) -> "Masks":
        """What is left where padding is dealt with otherwise."""
        return Masks(attn=self.attn)


class Attention(nn.Module):
    """Base of the attention layers: (B, N, D) → (B, N, D), parameters packed as timm's (`qkv`, `proj`).

    An operator writes `attend` and `weigh`, and names in `honours` the masks that it takes; what it does not name is
    refused here, never ignored.

    Args:
        dim: token width D.
        num_heads: heads H; each is d = D / H wide.
        qkv_bias: whether the q, k, v projections have a bias.
        attn_drop: dropout probability of the weights that the operator gives to tokens.
        proj_drop: dropout probability of the output.

    Raises:
        UsageError: if `num_heads` does not divide `dim`.
    """

    honours: ClassVar[frozenset[str]] = frozenset({"key_padding_mask"})
    refusal: ClassVar[str] = "leave it out, or use SoftmaxAttention or ReLUAttention, which take it"
    """Ends the message about a mask that is not honoured: why not, and what to do."""

    def __init__(
        self, dim: int, num_heads: int = 8, qkv_bias: bool = True, attn_drop: float = 0.0, proj_drop: float = 0.0
    ) -> None:
        super().__init__()
        if num_heads < 1 or dim % num_heads:
            divisors = [h for h in range(1, min(dim, 64) + 1) if dim % h == 0]
            raise UsageError(f"num_heads={num_heads} does not divide dim={dim}: choose one of {divisors}")
        self.dim, self.num_heads, self.head_dim = dim, num_heads, dim // num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(B, N, D) → (B, N, D). Masks are boolean and True where something is left out, as in nn.MultiheadAttention.

        Args:
            x: the tokens.
            key_padding_mask: (B, N), True for tokens that are padding: they get weight 0 and change nothing elsewhere,
                so the other tokens come out as if they were alone. What comes out at a padding token means nothing.
            attn_mask: (N, N), (B, N, N) or (B, H, N, N), True where token i (row) must not see token j: j gets weight 0
                in row i and brings it no value. PureInfSA's rows share one norm, to which j still adds where others
                see it, and its further hops may reach j through these.
            is_causal: token i sees only tokens j ≤ i.

        Raises:
            ValueError: if a shape, dtype or device does not fit.
            UsageError: if this operator cannot honour a mask that is given.
        """
        masks = Masks(key_padding_mask, attn_mask, is_causal)
        return self.attend(self._admitted(x, masks), masks)

    def weights(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """What the operator weighs tokens with: (B, H, N, N) or, where one weight serves all tokens, (B, H, N).

        Takes and raises as `forward`.
        """
        masks = Masks(key_padding_mask, attn_mask, is_causal)
        return self.weigh(self._admitted(x, masks), masks)

    def first(self, x: Tensor) -> Tensor:
        """What the first token alone receives, `forward(x)[:, :1]`, without what other tokens alone need.

        All that a class token's head takes of the last layer; an operator says what it can spare.
        """
        return self(x)[:, :1]

    def attend(self, x: Tensor, masks: Masks) -> Tensor:
        """`forward` after its checks; tokens that are padding are 0 here, so that not even NaN in them spreads."""
        raise NotImplementedError

    def weigh(self, x: Tensor, masks: Masks) -> Tensor:
        """`weights` after its checks, as `attend`."""
        raise NotImplementedError

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K, V of the tokens: (B, N, D) → three times (B, H, N, d)."""
        Q, K, V = self.apart(self.qkv(x))
        return Q, K, V

    def projected(self, x: Tensor, which: slice) -> tuple[Tensor, ...]:
        """Some of Q, K, V of these tokens, which `heads` gives all: (B, n, D) → (B, H, n, d) each.

        A `qkv` that was replaced (LoRA, quantised weights) or is looked at by hooks computes all of them.
        """
        if not _is_linear(self.qkv) or self.qkv._forward_hooks:
            return self.apart(self.qkv(x))[which]
        rows = slice(which.start * self.dim, which.stop * self.dim)
        W, b = self.qkv.weight, self.qkv.bias
        return self.apart(F.linear(x, W[rows], None if b is None else b[rows]))

    def qkv_map(self) -> tuple[Tensor, Tensor | None]:
        """Weight (3 D, D) and bias (3 D,) of `qkv`, for what multiplies with them in another order.

        Raises:
            UsageError: if `qkv` was replaced by what does more than that (LoRA, quantised weights).
        """
        if not _is_linear(self.qkv):
            raise UsageError(
                f"{type(self).__name__} multiplies with the weights of qkv, and {type(self.qkv).__name__} does "
                "something else with them: merge it into an nn.Linear first"
            )
        return self.qkv.weight, self.qkv.bias

    def apart(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Packed projections by kind and head: (B, N, n D) → n times (B, H, N, d)."""
        return packed.unflatten(-1, (-1, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()

    def merge(self, O: Tensor) -> Tensor:  # noqa: E741 (the paper's letter)
        """Joins the heads and projects: (B, H, N, d) → (B, N, D)."""
        B, H, N, d = O.shape
        return self.proj_drop(self.proj(O.transpose(1, 2).reshape(B, N, H * d)))

    def _admitted(self, x: Tensor, masks: Masks) -> Tensor:
        """x with its padding set to 0, once all that was given fits."""
        self._check_tokens(x)
        padding, attn_mask, is_causal = masks
        given = {"key_padding_mask": padding is not None, "attn_mask": attn_mask is not None, "is_causal": is_causal}
        for name, is_given in given.items():
            if is_given and name not in self.honours:
                raise UsageError(f"{type(self).__name__} cannot honour {name}: {self.refusal}")
        B, N, _ = x.shape
        if attn_mask is not None:
            _check_mask("attn_mask", attn_mask, x, ((N, N), (B, N, N), (B, self.num_heads, N, N)))
        if padding is not None:
            _check_mask("key_padding_mask", padding, x, ((B, N),))
            x = x.masked_fill(padding.unsqueeze(-1), 0)
        return x

    def _check_tokens(self, x: Tensor) -> None:
        weight = self.qkv.weight
        if x.ndim != 3 or x.shape[-1] != self.dim:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected (B, N, D) with D = {self.dim}, as qkv.weight of shape "
                f"{tuple(weight.shape)} takes"
            )
        if x.device != weight.device:
            raise ValueError(
                f"x of shape {tuple(x.shape)} is on {x.device}, expected {weight.device}, where the layer is"
            )
        if x.dtype != weight.dtype and not (x.is_floating_point() and autocasts(x)):
            raise ValueError(
                f"x of shape {tuple(x.shape)} is {x.dtype}, expected {weight.dtype} as the layer's weights: "
                "convert one of them, or use autocast"
            )

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


def _is_linear(layer: nn.Module) -> bool:
    """Whether it multiplies with its weights and does nothing else; a parametrised one does."""
    return type(layer).forward is nn.Linear.forward


def _check_mask(name: str, mask: Tensor, x: Tensor, shapes: tuple[tuple[int, ...], ...]) -> None:
    if mask.dtype != torch.bool:
        raise ValueError(f"{name} of shape {tuple(mask.shape)} is {mask.dtype}, expected torch.bool, True = left out")
    if tuple(mask.shape) not in shapes:
        expected = " or ".join(str(tuple(shape)) for shape in shapes)
        raise ValueError(f"{name} has shape {tuple(mask.shape)}, expected {expected} for x of shape {tuple(x.shape)}")
    if mask.device != x.device:
        raise ValueError(f"{name} of shape {tuple(mask.shape)} is on {mask.device}, expected {x.device}, where x is")


class DiscountedAttention(Attention):
    """An attention with a discount gamma in (0, 1) per head, stored as the logit `gamma_logit`.

    Args:
        gamma: initial discount of every head.
        learn_gamma: whether it gets a gradient or stays as it is.
        gamma_per_head: `gamma_logit` is (H,); otherwise (1,), one discount that all heads of the layer share.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        gamma: float = 0.95,
        learn_gamma: bool = True,
        gamma_per_head: bool = True,
    ) -> None:
        super().__init__(dim, num_heads, qkv_bias, attn_drop, proj_drop)
        if not 0 < gamma < 1:
            raise UsageError(f"gamma={gamma} is not a discount: expected 0 < gamma < 1")
        start = torch.full((num_heads if gamma_per_head else 1,), math.log(gamma / (1 - gamma)))
        self.gamma_logit = nn.Parameter(start, requires_grad=learn_gamma)

    @property
    def gamma(self) -> Tensor:
        """The discount per head, (H,), in (0, 1)."""
        return self.gamma_logit.sigmoid().expand(self.num_heads)
