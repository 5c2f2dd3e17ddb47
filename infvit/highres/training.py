"""Trains on images whose activations do not fit in memory: a chunk of tokens at a time, also backward."""

from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infvit.errors import expect
from infvit.highres import stages
from infvit.vit import VisionTransformer


class ChunkedTraining(nn.Module):
    """The same model, but a training step stores only two states per token and layer.

    Norms, MLP and attention are recomputed for each chunk in the backward pass (activation checkpointing), at the cost
    of one more forward pass. Parameters are the model's own: train this module in its place.

    Args:
        model: a VisionTransformer of Linear-InfSA layers.
        chunk: tokens of an image at a time.

    Raises:
        UsageError: if a layer is not Linear-InfSA or chunk is not positive.
    """

    def __init__(self, model: VisionTransformer, chunk: int = 1024) -> None:
        super().__init__()
        expect(chunk >= 1, f"chunk={chunk}", "at least 1 token at a time")
        stages.blocks_of(model)
        self.model, self.chunk = model, chunk

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → logits (B, classes)."""
        model = self.model
        x = model.embed(images)
        blocks = stages.blocks_of(model)
        for i, (block, attention) in enumerate(blocks):
            total = attention.chunked_sums(block.norm1(x), self.chunk)
            added = block.drop_path(block.extra_proj(attention.output(total, x.dtype)))
            # One draw of stochastic depth for all chunks of an image.
            kept = block.drop_path(x.new_ones(x.shape[0], 1, 1))
            if i == len(blocks) - 1 and model.cls_token is not None:
                x = x[:, :1]
            advance = partial(checkpoint, stages.advance, block, use_reentrant=False, preserve_rng_state=False)
            x = torch.cat([advance(piece, added, kept) for piece in x.split(self.chunk, dim=1)], dim=1)
        return model.forward_head(model.norm(x))
