"""A VisionTransformer whose tokens interact through sums alone, split at the points where they do."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from infvit.attention.sums import SummedAttention, Totals
from infvit.errors import UsageError, expect
from infvit.vit import Block, VisionTransformer


def blocks_of(model: VisionTransformer) -> list[tuple[Block, SummedAttention]]:
    """The model's blocks and their attentions; UsageError for others, `locality` or other pooling."""
    expect(_pools(model), f"global_pool={model.global_pool!r}", "'token', or 'avg' without one; or run the model dense")
    found: list[tuple[Block, SummedAttention]] = []
    for i, block in enumerate(cast(Iterable[Block], model.blocks)):
        near = f"blocks.{i} has a convolution over neighbours (locality), which pieces of an image cut"
        expect(not _convolves(block), near, "none, or run the model dense")
        if not isinstance(block.attn, SummedAttention):
            raise UsageError(
                f"blocks.{i} has {type(block.attn).__name__}, expected an attention whose tokens interact through sums "
                "of fixed size alone, as LinearInfSA or KernelInfSA: use model=linear_infvit, or run the model dense"
            )
        for name in ("attn_drop", "proj_drop"):
            rate = getattr(block.attn, name).p
            expect(not (block.training and rate), f"blocks.{i} trains with {name}={rate}", "0")
        found.append((block, block.attn))
    return found


def runs_in_pieces(model: nn.Module) -> TypeGuard[VisionTransformer]:
    """Whether the functions of `infvit.highres` take the model."""
    if not isinstance(model, VisionTransformer):
        return False
    return _pools(model) and all(isinstance(b.attn, SummedAttention) and not _convolves(b) for b in model.blocks)


def _convolves(block: Any) -> bool:
    return getattr(block.attn, "locality", None) is not None


def _pools(model: VisionTransformer) -> bool:
    """Whether the head reads the class token, or the mean where there is none."""
    return model.global_pool == ("avg" if model.cls_token is None else "token")


def sums(block: Block, x: Tensor, *before: Tensor) -> Tensor:
    """The next round's sums of a block's attention over some tokens before the block, given the totals `before`."""
    return cast(SummedAttention, block.attn).sums(block.norm1(x), *before)


def advance(block: Block, x: Tensor, totals: Totals, kept: Sequence[Tensor] | None = None) -> Tensor:
    """Tokens after the block, (B, n, D), from those before it and the totals of its attention's sums.

    What attention and MLP add is multiplied by `kept`, each (B, 1, 1): their stochastic depth.
    """
    attention = cast(SummedAttention, block.attn)
    added = block.extra_proj(attention.output(block.norm1(x), totals))
    x = x + (added if kept is None else kept[0] * added)
    expanded = block.mlp(block.norm2(x))
    return x + (expanded if kept is None else kept[1] * expanded)


def check_finite(values: Tensor, where: str) -> None:
    """Raises UsageError, naming `where`, if a value is NaN or infinite."""
    if not torch.isfinite(values).all():
        raise UsageError(f"{where} computed NaN or infinity in {values.dtype}: look at the checkpoint's weights")
