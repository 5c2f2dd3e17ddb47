"""Functions of the operators that never form the N × N matrix: padding, sequence positions, dropped tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from infvit.attention.layer import Masks, precision


def precise(x: Tensor) -> Tensor:
    """x in float32 or better, for sums over tokens."""
    return x.to(precision(x))


def zero_padding(x: Tensor, masks: Masks) -> Tensor:
    """x (B, H, N, d) with 0 at padding."""
    return x if masks.key_padding_mask is None else x.masked_fill(masks.key_padding_mask[:, None, :, None], 0)


def sequence_index(x: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
    """The index of each token among the tokens of its image without padding, and the number of these, at least 1.

    x (B, N, D) → integers (B, N) and (B, 1), or (1, N) and (1, 1) without padding. At padding the index is undefined
    but in range.
    """
    N = x.shape[1]
    if masks.key_padding_mask is None:
        return torch.arange(N, device=x.device)[None], torch.full((1, 1), N, device=x.device)
    seen = (~masks.key_padding_mask).long()
    return (seen.cumsum(1) - 1).clamp_min(0), seen.sum(1, keepdim=True).clamp_min(1)


def segment_means(tensors: tuple[Tensor, ...], segments: int, masks: Masks) -> tuple[list[Tensor], Tensor]:
    """The means of m segments of the sequence, of ⌊N/m⌋ or ⌈N/m⌉ tokens; with fewer tokens than `segments`, m = N.

    Each of the tensors (B, H, N, d) → (B, H, m, d), and whether a segment is empty, (B or 1, 1, m, 1): an image with
    padding may have fewer tokens than segments. Padding is in no segment; the mean of an empty one is 0.
    """
    x = tensors[0]
    index, count = sequence_index(x[:, 0], masks)
    m = min(segments, x.shape[-2])
    members = zero_padding(F.one_hot(index * count.clamp_max(m) // count, m)[:, None].to(x.dtype), masks)
    sizes = members.sum(-2)[..., None]
    return [members.mT @ t / sizes.clamp_min(1) for t in tensors], sizes == 0


def masked_softmax(scores: Tensor, hidden: Tensor | None) -> Tensor:
    """Softmax over the last axis without the hidden entries; 0, with finite gradients, where all are hidden."""
    if hidden is None:
        return scores.softmax(dim=-1)
    return scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(dim=-1).masked_fill(hidden, 0)


def drop_tokens(V: Tensor, dropout: nn.Dropout) -> Tensor:
    """Dropout of whole tokens from a sum over tokens, for operators without a matrix of weights."""
    return V * dropout(V.new_ones(*V.shape[:-1], 1))
