"""Embeds the tokens of an image of any size, a block of patches at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from infvit.errors import expect
from infvit.highres.images import Image
from infvit.vit import VisionTransformer

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Patches:
    """A rectangle of patches: rows [top, bottom), columns [left, right)."""

    top: int
    bottom: int
    left: int
    right: int


@dataclass(frozen=True)
class Tokens:
    """The tokens of an image before the first layer, never more than a block of them in memory.

    Args:
        model: the model.
        image: its sides must be multiples of the patch.
        chunk: largest number of tokens in a block.
        mean, std: of the channels on the scale [0, 1], as in training.

    Raises:
        UsageError: if a side does not fit or chunk is below 1.
    """

    model: VisionTransformer
    image: Image
    chunk: int
    mean: Sequence[float] = IMAGENET_MEAN
    std: Sequence[float] = IMAGENET_STD

    def __post_init__(self) -> None:
        expect(self.chunk >= 1, f"chunk={self.chunk}", "at least 1 token at a time")
        _ = self.grid  # raises if the image does not fit

    @cached_property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches."""
        return self.model.grid(self.image.height, self.image.width)

    @cached_property
    def positions(self) -> "Positions":
        """Position embeddings for this grid."""
        return Positions(self.model, self.grid)

    def blocks(self) -> Iterator[Patches]:
        """The image in blocks of at most `chunk` patches, in the model's order: whole rows, or pieces of a row."""
        rows, columns = self.grid
        high, wide = max(self.chunk // columns, 1), min(self.chunk, columns)
        for top in range(0, rows, high):
            for left in range(0, columns, wide):
                yield Patches(top, min(top + high, rows), left, min(left + wide, columns))

    def class_token(self) -> Tensor | None:
        """The class token before the first layer, (1, 1, D); None without one."""
        if self.model.cls_token is None:
            return None
        return self.model.cls_token + self.model.pos_embed[:, :1]

    def embed(self, block: Patches) -> Tensor:
        """The tokens of a block before the first layer: (1, n, D)."""
        side = self.model.patch_size
        pixels = self.image.read(block.top * side, block.bottom * side, block.left * side, block.right * side)
        weight = self.model.pos_embed
        normalised = normalise(pixels.to(weight.device), weight.dtype, self.mean, self.std)
        return self.model.patch_embed(normalised[None]) + self.positions.of(block)


def normalise(
    pixels: Tensor, dtype: torch.dtype, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD
) -> Tensor:
    """uint8 (C, h, w) → (pixels / 255 - mean) / std."""
    centre, scale = (torch.tensor(values, dtype=dtype, device=pixels.device).view(-1, 1, 1) for values in (mean, std))
    return (pixels.to(dtype) / 255 - centre) / scale


class Positions:
    """Position embeddings interpolated to a grid, a block at a time: at 9216 × 9216 pixels all of them take 1.4 GB.

    Bicubic interpolation is linear and separable: row r, column c is Σ_ij rows[r, i] columns[c, j] P[i, j], with the
    weights of each axis found by interpolating unit vectors. Equal to `infvit.positions.resample`.
    """

    def __init__(self, model: VisionTransformer, grid: tuple[int, int]) -> None:
        own = model.grid_size
        self.table = model.pos_embed[0, model.num_prefix_tokens :].unflatten(0, own)
        self.exact = grid == own
        self.rows, self.columns = (_weights(*sizes).to(self.table) for sizes in zip(own, grid, strict=True))

    def of(self, block: Patches) -> Tensor:
        """(1, n, D)."""
        if self.exact:
            return self.table[block.top : block.bottom, block.left : block.right].flatten(0, 1)[None]
        along_rows = torch.einsum("ri,ijd->rjd", self.rows[block.top : block.bottom], self.table)
        return (self.columns[block.left : block.right] @ along_rows).flatten(0, 1)[None]


def _weights(old: int, new: int) -> Tensor:
    """The weight of each of `old` positions in each of `new`: (new, old)."""
    units = torch.eye(old)[None, None]  # the second axis keeps its length
    return F.interpolate(units, size=(new, old), mode="bicubic", antialias=True)[0, 0]
