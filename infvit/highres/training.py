"""Trains on images whose activations do not fit in memory: a chunk of tokens at a time, also backward."""

from collections.abc import Iterable
from functools import partial, reduce
from operator import add

import torch
from torch import Tensor, nn

from infvit.attention.sums import Totals, gathered, recomputed
from infvit.errors import expect
from infvit.highres import stages
from infvit.vit import Block, VisionTransformer


class ChunkedTraining(nn.Module):
    """The same model, but a training step stores only one state per token and layer.

    Norms, MLP and attention are recomputed for each chunk in the backward pass (activation checkpointing), at the cost
    of one more forward pass. Parameters are the model's own: train this module in its place.

    Args:
        model: a VisionTransformer whose tokens interact through sums alone, as those of Linear-InfSA.
        chunk: tokens of an image at a time.

    Raises:
        UsageError: if tokens interact in another way, or chunk is not positive.
    """

    def __init__(self, model: VisionTransformer, chunk: int = 1024) -> None:
        super().__init__()
        expect(chunk >= 1, f"chunk={chunk}", "at least 1 token at a time")
        stages.blocks_of(model)
        self.model, self.chunk = model, chunk

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → logits (B, classes)."""
        model = self.model
        pieces = model.embed(images).split(self.chunk, dim=1)
        blocks = stages.blocks_of(model)
        for i, (block, attention) in enumerate(blocks):
            totals = gathered(attention, partial(_recomputed_sums, block, pieces))
            if i == len(blocks) - 1 and model.cls_token is not None:
                pieces = (pieces[0][:, :1],)
            # One draw of stochastic depth for all chunks of an image.
            kept = [block.drop_path(images.new_ones(len(images), 1, 1)) for _ in range(2)]
            advance = partial(stages.advance, block, totals=totals, kept=kept)
            pieces = tuple(recomputed(advance, piece) for piece in pieces)
        return model.forward_head(model.norm(torch.cat(pieces, dim=1)))


def _recomputed_sums(block: Block, pieces: Iterable[Tensor], before: Totals) -> Tensor:
    return reduce(add, (recomputed(stages.sums, block, x, *before) for x in pieces))
