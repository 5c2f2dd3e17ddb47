"""A VisionTransformer of Linear-InfSA layers, split at the points where its tokens interact.

A layer needs only `query_sums` and `token_sums` from its tokens and returns one `row`, which `advance` adds to each.
"""

from typing import TypeGuard, cast

import torch
from torch import Tensor, nn

from infvit.attention.sums import SummedAttention, Sums
from infvit.errors import UsageError
from infvit.vit import Block, VisionTransformer


def blocks_of(model: VisionTransformer) -> list[Block]:
    """The model's blocks; UsageError if the attention of one is not a `SummedAttention`."""
    blocks = [cast(Block, block) for block in model.blocks]
    for i, block in enumerate(blocks):
        if not isinstance(block.attn, SummedAttention):
            raise UsageError(
                f"blocks.{i} has {type(block.attn).__name__}, expected an attention whose tokens interact through sums "
                "of fixed size alone, as LinearInfSA: use model=linear_infvit, or run the model dense"
            )
        if block.training and block.attn.attn_drop.p:
            raise UsageError(f"blocks.{i} trains with attn_drop={block.attn.attn_drop.p}, expected 0")
    return blocks


def runs_in_pieces(model: nn.Module) -> TypeGuard[VisionTransformer]:
    """Whether the functions of `infvit.highres` take the model."""
    return isinstance(model, VisionTransformer) and all(isinstance(b.attn, SummedAttention) for b in model.blocks)


def attention(block: Block) -> SummedAttention:
    """The block's attention, checked by `blocks_of`."""
    return cast(SummedAttention, block.attn)


def query_sums(block: Block, x: Tensor) -> Sums:
    """The layer's query sums over some tokens x (B, n, D)."""
    return attention(block).query_sums(block.norm1(x))


def token_sums(block: Block, x: Tensor, qbar: Tensor) -> Sums:
    """The layer's token sums over some tokens, with qbar from the query sums of all."""
    return attention(block).token_sums(block.norm1(x), qbar)


def scores(block: Block, x: Tensor, qbar: Tensor) -> Tensor:
    """The weights of some tokens before normalisation, (B, H, n)."""
    return attention(block).scores(block.norm1(x), qbar)


def row(block: Block, total: Sums, dtype: torch.dtype) -> Tensor:
    """What the layer adds to every token, from the token sums of all: (B, 1, D)."""
    return block.extra_proj(attention(block).output(total, dtype))


def advance(block: Block, x: Tensor, added: Tensor) -> Tensor:
    """Tokens after the block, (B, n, D), from those before it and the layer's row."""
    x = x + added
    return x + block.mlp(block.norm2(x))


def check_finite(values: Tensor, where: str) -> None:
    """Raises UsageError, naming `where`, if a value is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise UsageError(f"{where} computed NaN or infinity in {values.dtype}: look at the checkpoint's weights")
