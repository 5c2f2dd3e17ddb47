"""Classifies one image of any size: chunked, with token states in memory, or streamed, without."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from operator import add
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from infvit.attention.sums import SummedAttention, Totals, gathered, sum_dtype
from infvit.highres import stages
from infvit.highres.tokens import Tokens
from infvit.vit import Block, VisionTransformer

Progress = Callable[[int], object]
"""Called with the number of tokens that have passed a block's MLP since the last call."""


class Prediction(NamedTuple):
    """The result of one image.

    Attributes:
        logits: (1, classes).
        centrality: the weight of each patch in the last layer, mean over heads, (rows, columns); None unless requested.
    """

    logits: Tensor
    centrality: Tensor | None


def chunked(tokens: Tokens, progress: Progress = lambda _: None, centrality: bool = False) -> Prediction:
    """Classifies one image with all token states in memory and everything else computed a chunk at a time.

    Equal to the dense model up to rounding.

    Raises:
        UsageError: if tokens interact in another way than through sums, or a layer computes NaN or infinity.
    """
    return _predicted(tokens, StoredStates, progress, centrality)


def streamed(tokens: Tokens, progress: Progress = lambda _: None, centrality: bool = False) -> Prediction:
    """Classifies one image in memory that does not depend on its size.

    A token's state after layer l depends only on its pixels and on the sums of the l layers, so it is recomputed when
    needed, once for each round of a layer's sums. Equal to `chunked`, with r L (L - 1) / 2 passes through the MLP for r
    rounds instead of L - 1. Only `centrality` stores anything per token, H numbers, for one more round.

    Raises:
        UsageError: as `chunked`.
    """
    return _predicted(tokens, RecomputedStates, progress, centrality)


def mlp_passes(model: VisionTransformer, streaming: bool, centrality: bool = False) -> int:
    """Passes of all tokens through an MLP: the sum of all `progress` calls over the number of tokens."""
    rounds = [attention.rounds for _, attention in stages.blocks_of(model)]
    # After the last block only the head reads tokens: the class token, or all of them.
    visits = [*rounds[:-1], rounds[-1] + centrality, int(model.cls_token is None)]
    return sum(passed * n for passed, n in enumerate(visits)) if streaming else len(rounds) - 1 + visits[-1]


@contextmanager
def bar(tokens: Tokens, title: str, streaming: bool = False, centrality: bool = False) -> Iterator[Progress]:
    """A progress bar for `chunked` or `streamed`, on a terminal; appears after a second."""
    rows, columns = tokens.grid
    passes = mlp_passes(tokens.model, streaming, centrality)
    options: dict[str, Any] = {"unit": "token", "unit_scale": True, "ncols": 79, "leave": False}
    options |= {"delay": 1, "disable": None}  # None: only on a terminal
    with tqdm(total=rows * columns * passes, desc=title[:24], **options) as shown:
        yield shown.update


class StoredStates:
    """Token states in memory, updated in place at the first visit after a layer.

    `visit` yields the tokens at the current layer in chunks (1, n, D), the class token first. `advance` moves on to the
    output of `block`, given the totals of its attention's sums.
    """

    def __init__(self, tokens: Tokens, progress: Progress) -> None:
        self.progress, first = progress, tokens.class_token()
        rows, columns = tokens.grid
        prefix = 0 if first is None else 1
        self.x = tokens.model.pos_embed.new_empty(1, prefix + rows * columns, tokens.model.embed_dim)
        if first is not None:
            self.x[:, :1] = first
        for patches in tokens.blocks():
            states = tokens.embed(patches)
            start = prefix + patches.top * columns + patches.left
            self.x[:, start : start + states.shape[1]] = states
        self.chunk = tokens.chunk
        self.pending: tuple[Block, Totals] | None = None

    def visit(self) -> Iterator[Tensor]:
        for start in range(0, self.x.shape[1], self.chunk):
            piece = self.x[:, start : start + self.chunk]
            if self.pending is not None:
                piece.copy_(stages.advance(self.pending[0], piece, self.pending[1]))
                self.progress(piece.shape[1])
            yield piece
        self.pending = None

    def advance(self, block: Block, totals: Totals) -> None:
        self.pending = block, totals

    def class_token(self) -> Tensor:
        return self.x[:, :1]


class RecomputedStates:
    """`StoredStates` recomputed from the image at every visit; only the totals of the layers so far are stored."""

    def __init__(self, tokens: Tokens, progress: Progress) -> None:
        self.tokens, self.progress = tokens, progress
        self.class_state = tokens.class_token()
        self.passed: list[tuple[Block, Totals]] = []

    def visit(self) -> Iterator[Tensor]:
        if self.class_state is not None:
            yield self.class_state
        for patches in self.tokens.blocks():
            x = self.tokens.embed(patches)
            for block, totals in self.passed:
                x = stages.advance(block, x, totals)
                self.progress(x.shape[1])
            yield x

    def advance(self, block: Block, totals: Totals) -> None:
        self.passed.append((block, totals))
        if self.class_state is not None:
            self.class_state = stages.advance(block, self.class_state, totals)

    def class_token(self) -> Tensor:
        assert self.class_state is not None
        return self.class_state


@torch.inference_mode()
def _predicted(
    tokens: Tokens, kind: type[StoredStates | RecomputedStates], progress: Progress, centrality: bool
) -> Prediction:
    model, blocks = tokens.model, stages.blocks_of(tokens.model)
    states, last, scores = kind(tokens, progress), len(blocks) - 1, None
    for i, (block, attention) in enumerate(blocks):
        totals = _totals(block, attention, states.visit, f"layer {i} (blocks.{i}) or the MLP before it")
        if i == last and centrality:
            scores = torch.cat([attention.scores(block.norm1(x), totals) for x in states.visit()], -1)
        if i < last or model.cls_token is None:
            states.advance(block, totals)
    if model.cls_token is None:
        total = reduce(add, (model.norm(x).sum(1, dtype=sum_dtype(x)) for x in states.visit()))
        pooled = (total / math.prod(tokens.grid)).to(model.pos_embed.dtype)
    else:
        pooled = model.norm(stages.advance(block, states.class_token(), totals))[:, 0]
    logits = model.head(model.pre_logits(pooled))
    stages.check_finite(logits, f"layer {last} (blocks.{last}) or the head after it")
    if scores is None:
        return Prediction(logits, None)
    total = scores.sum(-1, keepdim=True)
    weights = (scores / torch.where(total == 0, 1, total))[0, :, model.num_prefix_tokens :]
    return Prediction(logits, weights.mean(0).float().view(tokens.grid))


def _totals(block: Block, attention: SummedAttention, visit: Callable[[], Iterator[Tensor]], where: str) -> Totals:
    def of_round(before: Totals) -> Tensor:
        total = reduce(add, (stages.sums(block, x, *before) for x in visit()))
        stages.check_finite(total, where)
        return total

    return gathered(attention, of_round)
