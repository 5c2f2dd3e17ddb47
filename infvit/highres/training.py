"""Trains on images whose activations do not fit in memory: a chunk of tokens at a time, also backward."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from infvit.errors import UsageError
from infvit.highres import stages
from infvit.vit import Block, VisionTransformer


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
        if chunk < 1:
            raise UsageError(f"chunk={chunk}: expected at least 1 token at a time")
        stages.blocks_of(model)
        self.model, self.chunk = model, chunk

    def forward(self, images: Tensor) -> Tensor:
        """(B, C, height, width) → logits (B, classes)."""
        model = self.model
        x = model.embed(images)
        blocks = stages.blocks_of(model)
        for block in blocks:
            added = block.drop_path(self._row(block, x))
            # One draw of stochastic depth for all chunks of an image.
            kept = block.drop_path(x.new_ones(x.shape[0], 1, 1))
            if block is blocks[-1] and model.cls_token is not None:
                x = x[:, :1]
            pieces = x.split(self.chunk, dim=1)
            x = torch.cat([_checkpointed(block, piece, added, kept) for piece in pieces], dim=1)
        return model.forward_head(model.norm(x))

    def _row(self, block: Block, x: Tensor) -> Tensor:
        """What the layer adds to every token, (B, 1, D), from its sums in chunks."""
        attention = stages.attention(block)
        total = attention.chunked_sums(block.norm1(x), self.chunk)
        return block.extra_proj(attention.output(total, x.dtype))


def _checkpointed(block: Block, x: Tensor, added: Tensor, kept: Tensor) -> Tensor:
    """`stages.advance` with stochastic depth; only its inputs are stored for the backward pass."""
    return checkpoint(_advance, block, x, added, kept, use_reentrant=False, preserve_rng_state=False)


def _advance(block: Block, x: Tensor, added: Tensor, kept: Tensor) -> Tensor:
    x = x + added
    return x + kept * block.mlp(block.norm2(x))
