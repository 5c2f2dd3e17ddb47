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

from infvit.attention.layer import EPS
from infvit.attention.sums import sum_dtype
from infvit.highres import stages
from infvit.highres.tokens import Tokens
from infvit.vit import Block

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
        UsageError: if a layer of the model is not Linear-InfSA, or computes NaN or infinity.
    """
    return _predicted(tokens, StoredStates, progress, centrality)


def streamed(tokens: Tokens, progress: Progress = lambda _: None, centrality: bool = False) -> Prediction:
    """Classifies one image in memory that does not depend on its size.

    A token's state after layer l depends only on its pixels and on the l rows that the layers have added, so it is
    recomputed when needed, twice in each layer. Equal to `chunked`, with L (L - 1) passes through the MLP instead of
    L - 1. Only `centrality` stores anything per token: H numbers.

    Raises:
        UsageError: as `chunked`.
    """
    return _predicted(tokens, RecomputedStates, progress, centrality)


def mlp_passes(model_depth: int, streaming: bool, class_token: bool) -> int:
    """Passes of all tokens through an MLP: the sum of all `progress` calls over the number of tokens."""
    visits = model_depth * (model_depth - 1) if streaming else model_depth - 1
    return visits if class_token else visits + (model_depth if streaming else 1)


@contextmanager
def bar(tokens: Tokens, title: str, streaming: bool = False) -> Iterator[Progress]:
    """A progress bar for `chunked` or `streamed`, on a terminal; appears after a second."""
    rows, columns = tokens.grid
    passes = mlp_passes(len(tokens.model.blocks), streaming, tokens.model.cls_token is not None)
    options: dict[str, Any] = {"unit": "token", "unit_scale": True, "ncols": 79, "leave": False}
    options |= {"delay": 1, "disable": None}  # None: only on a terminal
    with tqdm(total=rows * columns * passes, desc=title[:24], **options) as shown:
        yield shown.update


class StoredStates:
    """Token states in memory, updated in place at the first visit after a layer.

    `visit` yields the tokens at the current layer in chunks (1, n, D), the class token first. `advance` moves on to the
    output of `block`, whose attention adds the row `added`, (1, 1, D), to every token.
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
        self.pending: tuple[Block, Tensor] | None = None

    def visit(self) -> Iterator[Tensor]:
        for start in range(0, self.x.shape[1], self.chunk):
            piece = self.x[:, start : start + self.chunk]
            if self.pending is not None:
                block, added = self.pending
                piece.copy_(stages.advance(block, piece, added))
                self.progress(piece.shape[1])
            yield piece
        self.pending = None

    def advance(self, block: Block, added: Tensor) -> None:
        self.pending = block, added

    def class_token(self) -> Tensor:
        return self.x[:, :1]


class RecomputedStates:
    """`StoredStates` recomputed from the image at every visit; only the rows added so far are stored."""

    def __init__(self, tokens: Tokens, progress: Progress) -> None:
        self.tokens, self.progress = tokens, progress
        self.class_state = tokens.class_token()
        self.passed: list[tuple[Block, Tensor]] = []

    def visit(self) -> Iterator[Tensor]:
        if self.class_state is not None:
            yield self.class_state
        for patches in self.tokens.blocks():
            x = self.tokens.embed(patches)
            for block, added in self.passed:
                x = stages.advance(block, x, added)
                self.progress(x.shape[1])
            yield x

    def advance(self, block: Block, added: Tensor) -> None:
        self.passed.append((block, added))
        if self.class_state is not None:
            self.class_state = stages.advance(block, self.class_state, added)

    def class_token(self) -> Tensor:
        assert self.class_state is not None
        return self.class_state


@torch.inference_mode()
def _predicted(
    tokens: Tokens, kind: type[StoredStates | RecomputedStates], progress: Progress, centrality: bool
) -> Prediction:
    model, blocks = tokens.model, stages.blocks_of(tokens.model)
    states, last = kind(tokens, progress), len(blocks) - 1
    scores: list[Tensor] = []
    for i, (block, attention) in enumerate(blocks):
        queries = reduce(add, (attention.query_sums(block.norm1(x)) for x in states.visit()))
        stages.check_finite(queries.weighted, f"layer {i} (blocks.{i}) or the MLP before it")
        qbar, parts = attention.qbar(queries), []
        for x in states.visit():
            normed = block.norm1(x)
            parts.append(attention.token_sums(normed, qbar))
            if centrality and i == last:
                scores.append(attention.scores(normed, qbar))
        values = reduce(add, parts)
        added = block.extra_proj(attention.output(values, model.pos_embed.dtype))
        if i == last and model.cls_token is not None:
            pooled = model.norm(stages.advance(block, states.class_token(), added))[:, 0]
        else:
            states.advance(block, added)
    if model.cls_token is None:
        total = reduce(add, (model.norm(x).sum(1, dtype=sum_dtype(x)) for x in states.visit()))
        pooled = (total / math.prod(tokens.grid)).to(added.dtype)
    logits = model.head(model.pre_logits(pooled))
    stages.check_finite(logits, f"layer {last} (blocks.{last}) or the head after it")
    if not centrality:
        return Prediction(logits, None)
    weights = torch.cat(scores, -1)[0, :, model.num_prefix_tokens :] / (values.weight[0, :, None] + EPS)
    return Prediction(logits, weights.mean(0).float().view(tokens.grid))
