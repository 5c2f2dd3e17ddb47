"""What the operators that never form the N × N matrix share: padding left out, places of tokens, dropped tokens."""

import torch
from torch import Tensor, nn

from infvit.attention.layer import Masks, precision


def precise(x: Tensor) -> Tensor:
    """x in float32 or better: what is summed over tokens."""
    return x.to(precision(x))


def hide(x: Tensor, masks: Masks) -> Tensor:
    """x (B, H, N, d) with 0 at the tokens that are padding."""
    return x if masks.key_padding is None else x.masked_fill(masks.key_padding[:, None, :, None], 0)


def places(x: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """The place of each token among the tokens of its image that are no padding, from 0, and how many those are.

    x (B, N, D) → integers (B, N) and (B, 1), or (1, N) and (1, 1) where nothing is padding. At padding the place
    means nothing but lies in range; the count is at least 1.
    """
    N = x.shape[1]
    if masks.key_padding is None:
        return torch.arange(N, device=x.device)[None], torch.full((1, 1), N, device=x.device)
    seen = (~masks.key_padding).long()
    return (seen.cumsum(1) - 1).clamp_min(0), seen.sum(1, keepdim=True).clamp_min(1)


def seen_softmax(scores: Tensor, hidden: Tensor | None) -> Tensor:
    """Softmax over the last axis without what is hidden; 0, with finite gradients, where all of it is."""
    if hidden is None:
        return scores.softmax(dim=-1)
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1).masked_fill(hidden, 0)


def drop_tokens(V: Tensor, dropout: nn.Dropout) -> Tensor:
    """Leaves whole tokens out of a head's sum over tokens: without the matrix, no single weight can be dropped."""
    return V * dropout(V.new_ones(*V.shape[:-1], 1))
