"""Depth, width, heads and patch of a model, for its row in a table."""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Shape:
    """Blocks, width of the last features, heads and patch in pixels; None if a model has none or several values."""

    depth: int | None
    dim: int | None
    heads: int | None
    patch: int | None


def shape(net: nn.Module) -> Shape:
    """The shape of a VisionTransformer or of a timm model, the blocks of whose stages are added."""
    blocks = sum(_length(m) for name, m in net.named_modules() if name.rpartition(".")[2] == "blocks")
    patch = getattr(net, "patch_size", None) or getattr(getattr(net, "patch_embed", None), "patch_size", None)
    sides = patch if isinstance(patch, tuple) else (patch,)
    return Shape(
        depth=blocks or None,
        dim=_single([getattr(net, "num_features", None)]),
        heads=_single([getattr(m, "num_heads", None) for m in net.modules()]),
        patch=_single(sides),
    )


def _single(found: Iterable[object]) -> int | None:
    """The whole number among the values if there is exactly one."""
    numbers = {number for number in found if isinstance(number, int)}
    return numbers.pop() if len(numbers) == 1 else None


def _length(blocks: nn.Module) -> int:
    """Blocks in a list, or in a list of stages that are lists (as in timm's EfficientNet)."""
    return sum(len(child) if isinstance(child, nn.Sequential) else 1 for child in blocks.children())
