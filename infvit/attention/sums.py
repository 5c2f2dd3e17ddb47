"""Attentions whose tokens interact only through sums over tokens.

Sums are accumulated in float64 (float32 on devices without it): a weight may be 1e30 or 3e-6 of the total, and squares
of 1e30 are 1e60. Values per token are float32 at least: they are divided by the largest one first, which cancels.
"""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infvit.attention.layer import largest_entry

Totals = tuple[Tensor, ...]
"""The sums over all tokens, one tensor for each round."""


@runtime_checkable
class SummedAttention(Protocol):
    """An attention whose tokens interact only through sums; `infvit.highres` runs it over pieces of an image.

    Disjoint tokens' sums add, and have a size that does not depend on the number of tokens. In each of `rounds` rounds
    the operator is given the totals of the rounds before; with those of all it computes the output of any token from
    that token alone.
    """

    rounds: int
    attn_drop: nn.Dropout
    proj_drop: nn.Dropout

    def sums(self, x: Tensor, *before: Tensor, padding: Tensor | None = None) -> Tensor:
        """The next round's sums of some tokens: (B, n, D) → (B, H, ...)."""
        ...

    def output(self, x: Tensor, totals: Totals) -> Tensor:
        """The output of some tokens, (B, n, D), or (B, 1, D) if it is the same for all."""
        ...

    def scores(self, x: Tensor, totals: Totals) -> Tensor:
        """The weight of each of these tokens, (B, n, D) → (B, H, n), up to one factor for each image and head."""
        ...


def gathered(attention: SummedAttention, sums_of_round: Callable[[Totals], Tensor]) -> Totals:
    """The totals of all rounds; `sums_of_round` computes one from those before it."""
    totals: Totals = ()
    for _ in range(attention.rounds):
        totals = (*totals, sums_of_round(totals))
    return totals


def recomputed(function: Callable[..., Tensor], *arguments: Any) -> Tensor:
    """`function(*arguments)`, which the backward pass calls again instead of storing its intermediate values."""
    result: Tensor = checkpoint(function, *arguments, use_reentrant=False, preserve_rng_state=False)
    return result


def sum_dtype(x: Tensor) -> torch.dtype:
    """The dtype of sums over tokens."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def relative(w: Tensor) -> tuple[Tensor, Tensor]:
    """w divided by its largest magnitude, and that magnitude, detached: (..., N) → (..., N), (...)."""
    largest = largest_entry(w, -1)
    return w / largest, largest.squeeze(-1)
