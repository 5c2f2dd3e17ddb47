"""The base classes of the attention operators: one signature, timm's parameter names, masks, and the discount gamma."""

import math
from contextlib import AbstractContextManager, nullcontext
from functools import reduce
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.locality import DepthwiseConv
from infvit.attention.registry import register
from infvit.errors import UsageError, expect

Q_ALONE, Q_AND_K, K_AND_V, V_ALONE = slice(0, 1), slice(0, 2), slice(1, 3), slice(2, 3)

EPS = 1e-6
"""Added to every norm that divides (arXiv:2603.00175)."""


def precision(x: Tensor) -> torch.dtype:
    """The dtype of norms and of sums over tokens: that of x, and at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def largest_entry(x: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """max |x| along `dim` with keepdim, detached; the smallest normal number where x is 0.

    Scale-invariant quantities are computed from x divided by this: squares of 1e30 overflow and of 1e-30 underflow.
    """
    x = x.detach()
    return torch.linalg.vector_norm(x, torch.inf, dim=dim, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)


def without_autocast(x: Tensor) -> AbstractContextManager[None]:
    """Disables autocast on the device of x (the meta device has none)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def autocasts(x: Tensor) -> bool:
    """Whether autocast is enabled on the device of x."""
    return not x.is_meta and torch.is_autocast_enabled(x.device.type)


class Masks(NamedTuple):
    """The masks of one call, as `Attention.forward` takes them."""

    key_padding_mask: Tensor | None = None
    attn_mask: Tensor | None = None
    is_causal: bool = False

    def hidden(self, x: Tensor) -> Tensor | None:
        """All masks as one, (B or 1, H or 1, N or 1, N), True where token i does not see j; None without masks."""
        masks = [] if self.key_padding_mask is None else [self.key_padding_mask[:, None, None, :]]
        if self.attn_mask is not None:
            masks.append(self.attn_mask.unsqueeze(1) if self.attn_mask.ndim == 3 else self.attn_mask)
        if self.is_causal:
            masks.append(torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1))
        hidden = reduce(torch.logical_or, masks) if masks else None
        return hidden[None, None] if hidden is not None and hidden.ndim == 2 else hidden


class Attention(nn.Module):
    """Base of the operators: (B, N, D) → (B, N, D), parameters packed as timm's (`qkv`, `proj`).

    An operator implements `_forward` and, unless it weighs nothing, `_weights`; its facts are members of its class. A
    class with a `name` of its own is listed in `ATTENTIONS`. `locality` makes proj(O + conv V) of proj(O) in each
    of them, so that a comparison can tell an operator from the convolution that its paper has beside it.

    Args:
        dim: token width D.
        num_heads: heads H; each is d = D / H wide.
        qkv_bias: whether the q, k, v projections have a bias.
        attn_drop: dropout probability of the weights that the operator gives to tokens.
        proj_drop: dropout probability of the output.
        locality: odd side of the convolution over the square grid of patches (`DepthwiseConv`), 0 for none. It takes no
            mask but `key_padding_mask`, because it would pass on what others hide.

    Attributes:
        name: in `ATTENTIONS`, on the command line and in tables.
        paper: its source.
        time: cost added to the projections, O(N D²) in every operator.
        memory: held beyond the projections.
        state: what a token needs from all others, per head.
        supported_masks: arguments of `forward` that it takes; others are refused, never ignored.
        mask_hint: why it refuses the others and what to do; the end of the error message.
        weighs: shape of `weights`: "matrix" (B, H, N, N), "vector" (B, H, N) or "nothing".
        buffers_may_be_averaged: whether a mean of its buffers over training steps can be used in their place.

    Raises:
        UsageError: if `num_heads` does not divide `dim`.
    """

    name: ClassVar[str]
    paper: ClassVar[str] = ""
    time: ClassVar[str] = "?"
    memory: ClassVar[str] = "?"
    state: ClassVar[str] = "?"
    supported_masks: ClassVar[frozenset[str]] = frozenset({"key_padding_mask"})
    mask_hint: ClassVar[str] = "leave it out, or use SoftmaxAttention or ReLUAttention, which take it"
    weighs: ClassVar[Literal["matrix", "vector", "nothing"]] = "matrix"
    buffers_may_be_averaged: ClassVar[bool] = True

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            register(cls.name, cls)

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        qkv_bias: bool = True,
        attn_drop: float = 0.0,
        proj_drop: float = 0.0,
        locality: int = 0,
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
        self.locality = DepthwiseConv(dim, locality) if locality else None

    def forward(
        self,
        x: Tensor,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """(B, N, D) → (B, N, D). Masks are boolean and True where a token is masked, as in nn.MultiheadAttention.

        Args:
            x: the tokens.
            key_padding_mask: (B, N), True for padding: it gets weight 0, and the other tokens come out as without it.
                The output at padding is undefined.
            attn_mask: (N, N), (B, N, N) or (B, H, N, N), True where token i (row) must not see token j: j gets weight 0
                in row i and adds no value to it. In PureInfSA j still adds to the norm that all rows share if another
                row sees it, and further hops may reach j through such rows.
            is_causal: token i sees only tokens j ≤ i.

        Raises:
            ValueError: if a shape, dtype or device does not fit.
            UsageError: if the operator does not support a given mask.
        """
        masks = Masks(key_padding_mask, attn_mask, is_causal)
        x = self._checked(x, masks)
        O, V = self._forward(x, masks)  # noqa: E741 (the paper's letter)
        if V is None and self.locality is not None:
            (V,) = self.project(x, V_ALONE)
        return self.combine(O, V, key_padding_mask).expand_as(x)

    def weights(self, x: Tensor, **masks: Any) -> Tensor:
        """The weights of the tokens, of the shape that `weighs` names: (B, N, D) → (B, H, N, N) or (B, H, N).

        Takes and raises as `forward`; UsageError if it weighs nothing.
        """
        given = Masks(**masks)
        return self._weights(self._checked(x, given), given)

    def forward_class_token(self, x: Tensor) -> Tensor:
        """`forward(x)[:, :1]`, without computing what only the other outputs need.

        The head of a model with a class token reads nothing else from the last layer.
        """
        x = self._checked(x, Masks())
        if self.locality is not None and not self.locality.prefix(x.shape[1]):
            return self.forward(x)[:, :1]
        return self.merge_heads(self._forward(x, Masks(), first=1)[0])

    @property
    def discounts(self) -> Tensor | None:
        """gamma of each head, (H,), in (0, 1); None for an operator without a discount."""
        return None

    @property
    def weight_heads(self) -> int:
        """H in the shape of `weights`."""
        return self.num_heads

    def apply_weights(self, W: Tensor, V: Tensor) -> Tensor:
        """O of the heads as a function of `weights` and V: (B, H, N, N) or (B, H, N), (B, H, N, d) → (B, H, N, d)."""
        return W @ V

    def _forward(self, x: Tensor, masks: Masks, first: int | None = None) -> tuple[Tensor, Tensor | None]:
        """O of the `first` tokens or, for None, of all, (B, H, n or 1, d), and V of all if it was computed.

        Padding is 0 in x, so that NaN in it does not spread. V is not read where `first` is given.
        """
        raise NotImplementedError

    def _weights(self, x: Tensor, masks: Masks) -> Tensor:
        """`weights`, of an x as in `_forward`."""
        raise UsageError(f"{type(self).__name__} has no weights between tokens: use its output `layer(x)`")

    def heads(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K, V of the tokens: (B, N, D) → three times (B, H, N, d)."""
        Q, K, V = self.split_heads(self.qkv(x))
        return Q, K, V

    def project(self, x: Tensor, which: slice) -> tuple[Tensor, ...]:
        """Some of Q, K, V (`Q_AND_K`): (B, n, D) → (B, H, n, d) each.

        Computes all three if `qkv` was replaced (LoRA, quantised weights) or has hooks.
        """
        if not _is_linear(self.qkv) or self.qkv._forward_hooks:
            return self.split_heads(self.qkv(x))[which]
        rows = slice(which.start * self.dim, which.stop * self.dim)
        W, b = self.qkv.weight, self.qkv.bias
        return self.split_heads(F.linear(x, W[rows], None if b is None else b[rows]))

    def qkv_map(self) -> tuple[Tensor, Tensor | None]:
        """Weight (3 D, D) and bias (3 D,) of `qkv`, for operators that reorder the products.

        Raises:
            UsageError: if `qkv` was replaced by a layer that does more than multiply (LoRA).
        """
        qkv: Any = self.qkv
        if callable(getattr(qkv, "weight", None)):  # torch's dynamic quantisation
            return qkv.weight().dequantize(), qkv.bias()
        if not _is_linear(self.qkv):
            raise UsageError(
                f"{type(self).__name__} multiplies with the weights of qkv, and {type(self.qkv).__name__} does "
                "something else with them: merge it into an nn.Linear first"
            )
        return self.qkv.weight, self.qkv.bias

    def split_heads(self, packed: Tensor) -> tuple[Tensor, ...]:
        """Packed projections by kind and head: (B, N, n D) → n times (B, H, N, d)."""
        return packed.unflatten(-1, (-1, self.num_heads, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()

    def combine(self, O: Tensor, V: Tensor | None, padding: Tensor | None = None) -> Tensor:  # noqa: E741
        """The output from O and, with `locality`, V of all tokens: (B, H, N, d) twice → (B, N, D). padding: (B, N)."""
        if self.locality is not None:
            O = O + self.locality(V, padding)  # noqa: E741
        return self.merge_heads(O)

    def merge_heads(self, O: Tensor) -> Tensor:  # noqa: E741 (the paper's letter)
        """Joins the heads and projects: (B, H, n, d) → (B, n, D)."""
        return self.proj_drop(self.proj(O.transpose(1, 2).flatten(2)))

    def _checked(self, x: Tensor, masks: Masks) -> Tensor:
        """x with its padding set to 0, after checking all arguments."""
        weight = self.qkv.weight if _is_linear(self.qkv) else x  # a replaced layer takes what it takes
        fits = x.dtype == weight.dtype or (x.is_floating_point() and autocasts(x))
        if x.ndim != 3 or x.shape[-1] != self.dim or x.device != weight.device or not fits:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, {x.dtype}, on {x.device}; expected (B, N, D) with D = {self.dim}, "
                f"{weight.dtype} (any floating type under autocast), on {weight.device}, as the layer's weights"
            )
        B, N, _ = x.shape
        shapes: dict[str, list[tuple[int, ...]]] = {
            "key_padding_mask": [(B, N)],
            "attn_mask": [(N, N), (B, N, N), (B, self.num_heads, N, N)],
        }
        for name, mask in masks._asdict().items():
            if mask is None or mask is False:
                continue
            if name not in self.supported_masks:
                raise UsageError(f"{type(self).__name__} cannot honour {name}: {self.mask_hint}")
            if self.locality is not None and name != "key_padding_mask":
                raise UsageError(f"{type(self).__name__} cannot honour {name} with a convolution of V: use locality=0")
            if name in shapes and (
                mask.dtype != torch.bool or mask.shape not in shapes[name] or mask.device != x.device
            ):
                raise ValueError(
                    f"{name} has shape {tuple(mask.shape)}, {mask.dtype}, on {mask.device}; expected "
                    f"{' or '.join(map(str, shapes[name]))}, torch.bool (True = left out), on {x.device}"
                )
        return x if masks.key_padding_mask is None else x.masked_fill(masks.key_padding_mask.unsqueeze(-1), 0)

    def extra_repr(self) -> str:
        return f"dim={self.dim}, num_heads={self.num_heads}"


def _is_linear(layer: nn.Module) -> bool:
    """Whether the layer only multiplies with its weights; true of a parametrised nn.Linear."""
    return type(layer).forward is nn.Linear.forward


class DiscountedAttention(Attention):
    """An attention with a discount gamma in (0, 1) per head, stored as the logit `gamma_logit`.

    Args:
        gamma: initial discount of every head.
        learn_gamma: whether it is trained or stays fixed.
        gamma_per_head: `gamma_logit` is (H,); otherwise (1,), one discount shared by the heads of the layer.

    Raises:
        UsageError: if gamma is not between 0 and 1.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        *,
        gamma: float = 0.95,
        learn_gamma: bool = True,
        gamma_per_head: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(dim, num_heads, **kwargs)
        expect(0 < gamma < 1, f"gamma={gamma}", "a discount above 0 and below 1")
        start = torch.full((num_heads if gamma_per_head else 1,), math.log(gamma / (1 - gamma)))
        self.gamma_logit = nn.Parameter(start, requires_grad=learn_gamma)

    @property
    def gamma(self) -> Tensor:
        """The discount of each head, (H,), in (0, 1)."""
        return self.gamma_logit.sigmoid().expand(self.num_heads)

    @property
    def discounts(self) -> Tensor:
        """`gamma`."""
        return self.gamma
