"""Adapters with the calling convention of the attention they replace: arguments, order of axes, return value."""

import re
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from infvit.errors import UsageError

MAY_BE_REFUSED = re.compile("(.*_)?(mask|bias)|is_causal|output_attentions")
"""Arguments that an original may take, and that a converted layer refuses if they are set."""

WITHOUT_EFFECT = {
    "interpolate_pos_encoding",
    "resolution",
    "output_hidden_states",
    "return_dict",
    "num_items_in_batch",
}
"""Arguments that transformers passes to every layer and that do not concern the attention."""


class AdaptedAttention(nn.Module):
    """A converted attention: calls `layer` with the calling convention of the module that it replaces.

    Args:
        layer: the attention layer, (B, N, D) → (B, N, D).
        name: of the module in the model, for messages.
        num_heads: heads of the layer.
    """

    def __init__(self, layer: nn.Module, name: str, num_heads: int) -> None:
        super().__init__()
        self.layer, self.name = layer, name
        self.num_heads = self.num_attention_heads = num_heads
        # A layer that is not of infvit.attention supports the masks that its forward takes.
        self.masks = getattr(layer, "supported_masks", tuple(signature(layer.forward).parameters))

    def _supported(self, **masks: Tensor | bool | None) -> dict[str, Tensor | bool]:
        """The masks that are set, as the layer takes them; UsageError for one that it does not support."""
        given: dict[str, Tensor | bool] = {}
        for name, mask in masks.items():
            if mask is None or mask is False:
                continue
            if name not in self.masks:
                raise self._refusal(name, getattr(self.layer, "mask_hint", ""))
            given[name] = self._boolean(name, mask) if isinstance(mask, Tensor) else mask
        return given

    def _boolean(self, argument: str, mask: Tensor) -> Tensor:
        """The mask as bool, True where something is left out; nn.TransformerEncoder converts masks to 0 and -inf."""
        if mask.dtype == torch.bool:
            return mask
        hidden = mask == float("-inf")
        if not bool((hidden | (mask == 0)).all()):
            raise UsageError(f"{self.name}: {argument} has values other than 0 and -inf: pass a boolean mask")
        return hidden

    def _refusal(self, argument: str, why: str = "") -> UsageError:
        return UsageError(
            f"{self.name}: {type(self.layer).__name__} cannot honour {argument}: {why or 'call the model without it'}, "
            f"or convert with exclude={self.name!r}"
        )


class TokensAdapter(AdaptedAttention):
    """Called with tokens (B, N, D) first, as in timm and transformers.

    Args:
        layer, name, num_heads: as in `AdaptedAttention`.
        arguments: names of the original's arguments, in order, the tokens first.
        returned: 0 to return the tokens alone, n to return them in a tuple of n, the rest None.
        config: the original's transformers config, if it has one.
    """

    def __init__(
        self, layer: nn.Module, name: str, num_heads: int, arguments: list[str], returned: int, config: object = None
    ) -> None:
        super().__init__(layer, name, num_heads)
        self.arguments, self.returned, self.config = tuple(arguments), returned, config

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Takes the original's arguments; those other than the tokens and a key padding mask must not be set."""
        given = {**dict(zip(self.arguments, args, strict=False)), **kwargs}
        x = given.pop(self.arguments[0])
        padding = given.pop("key_padding_mask", None)
        for argument, value in given.items():
            if value is not None and value is not False and argument not in WITHOUT_EFFECT:
                raise self._refusal(argument)
        # transformers records attentions from its own classes only and would return an empty tuple.
        if getattr(self.config, "output_attentions", False):
            raise self._refusal("output_attentions")
        out = self.layer(x, **self._supported(key_padding_mask=padding))
        return (out, *[None] * (self.returned - 1)) if self.returned else out


class MultiheadAdapter(AdaptedAttention):
    """Called as `nn.MultiheadAttention`: query, key, value, of which all three must be one tensor.

    Args:
        layer, name, num_heads: as in `AdaptedAttention`.
        batch_first: (B, N, D) if true, else (N, B, D); (N, D) without a batch either way.
    """

    # In eval mode nn.TransformerEncoderLayer passes these weights to a fused softmax and calls no submodule, unless
    # they are missing.
    in_proj_weight: None = None
    in_proj_bias: None = None
    _qkv_same_embed_dim = False

    def __init__(self, layer: nn.Module, name: str, num_heads: int, batch_first: bool) -> None:
        super().__init__(layer, name, num_heads)
        self.batch_first = batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """(tokens, weights or None), as `nn.MultiheadAttention` returns them."""
        if query is not key or key is not value:
            raise UsageError(
                f"{self.name}: called with query, key and value that are not one tensor; only self-attention can be "
                f"converted: convert with exclude={self.name!r}"
            )
        batched = query.dim() == 3
        tokens_first = batched and not self.batch_first
        x = query.transpose(0, 1) if tokens_first else query if batched else query.unsqueeze(0)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)
        if attn_mask is not None and attn_mask.dim() == 3:  # (B H, N, N)
            attn_mask = attn_mask.unflatten(0, (-1, self.num_heads))
        # With an attn_mask, is_causal is torch's hint about it. An operator that supports attn_mask alone would set
        # weights to 0 and still let later tokens through.
        only_hint = attn_mask is not None and "is_causal" in getattr(self.layer, "supported_masks", ("is_causal",))
        masks = self._supported(
            key_padding_mask=key_padding_mask, attn_mask=attn_mask, is_causal=is_causal and not only_hint
        )
        out = self.layer(x, **masks)
        out = out.transpose(0, 1) if tokens_first else out if batched else out.squeeze(0)
        if not need_weights:
            return out, None
        weigh = getattr(self.layer, "weights", None)
        if weigh is None:
            raise UsageError(
                f"{self.name}: {type(self.layer).__name__} has no weights to return: use need_weights=False"
            )
        weights = weigh(x, **masks)
        if weights.dim() == 3:  # one weight for all queries
            weights = weights.unsqueeze(2).expand(-1, -1, x.shape[1], -1)
        if average_attn_weights:
            weights = weights.mean(1)
        return out, weights if batched else weights.squeeze(0)
