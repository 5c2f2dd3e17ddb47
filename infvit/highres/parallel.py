"""Runs one image over several ranks: an all-reduce of fixed size for each round of a layer's sums."""

from functools import partial

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.nn.functional import all_reduce

from infvit.attention.sums import SummedAttention, Totals, gathered
from infvit.errors import UsageError
from infvit.highres import stages
from infvit.positions import resample
from infvit.vit import VisionTransformer


class TokenParallel(nn.Module):
    """A model whose images are split into horizontal bands, one per rank of a device mesh.

    Each rank passes its band and gets the logits of the whole image. Every rank has the class token, but only rank zero
    includes it in the sums. The gradient of the whole image is the mean of the ranks' gradients, which
    DistributedDataParallel computes: wrap this module in it to train.

    Args:
        model: a VisionTransformer whose tokens interact through sums alone, with equal weights on all ranks.
        mesh: one-dimensional, e.g. `init_device_mesh("cuda", (8,))`.

    Attributes:
        communicated: bytes that this rank has all-reduced for the sums, forward and backward.

    Raises:
        UsageError: if tokens interact in another way, or the model trains with stochastic depth (ranks would skip
            different branches).
    """

    def __init__(self, model: VisionTransformer, mesh: DeviceMesh) -> None:
        super().__init__()
        self.model, self.group, self.rank = model, mesh.get_group(), mesh.get_local_rank()
        self.world_size, self.communicated = mesh.size(), 0

    def forward(self, band: Tensor) -> Tensor:
        """This rank's band of the images, (B, C, h, width), bands ordered by rank → (B, classes)."""
        model = self.model
        blocks = stages.blocks_of(model)
        if model.training and any(block.drop_path.drop_prob for block, _ in blocks):
            raise UsageError("the model trains with stochastic depth: token-parallel training expects drop_path_rate=0")
        x, patches = self._embed(band)
        # Rank zero counts the class token, the others only their patches.
        counted = slice(None) if self.rank == 0 else slice(model.num_prefix_tokens, None)
        for i, (block, attention) in enumerate(blocks):
            normed = block.norm1(x[:, counted])
            totals = gathered(attention, partial(self._sums, attention, normed))
            if i == len(blocks) - 1 and model.cls_token is not None:
                x = x[:, :1]  # the head reads nothing else
            x = stages.advance(block, x, totals)
        x = model.norm(x)
        pooled = x[:, 0] if model.cls_token is not None else self._summed(x.sum(1)) / patches
        return model.head(model.pre_logits(pooled))

    def _embed(self, band: Tensor) -> tuple[Tensor, int]:
        """The band's tokens, the class token first, and the number of patches in the whole image."""
        model = self.model
        rows, columns = model.grid(*band.shape[-2:])
        all_rows = torch.zeros(self.world_size, dtype=torch.int64, device=band.device)
        all_rows[self.rank] = rows
        distributed.all_reduce(all_rows, group=self.group)
        grid = int(all_rows.sum()), columns
        prefix = model.num_prefix_tokens
        positions = resample(model.pos_embed, model.grid_size, grid, prefix)
        start = prefix + int(all_rows[: self.rank].sum()) * columns
        x = model.patch_embed(band) + positions[:, start : start + rows * columns]
        if model.cls_token is not None:
            x = torch.cat([(model.cls_token + positions[:, :1]).expand(x.shape[0], -1, -1), x], dim=1)
        return x, grid[0] * columns

    def _sums(self, attention: SummedAttention, x: Tensor, before: Totals) -> Tensor:
        return self._summed(attention.sums(x, *before))

    def _summed(self, part: Tensor) -> Tensor:
        total: Tensor = all_reduce(part, group=self.group)
        self._count(total)
        if total.requires_grad:
            total.register_hook(self._count)  # the backward pass all-reduces the gradient
        return total

    def _count(self, sent: Tensor) -> None:
        self.communicated += sent.numel() * sent.element_size()


def band(height: int, patch: int, rank: int, world_size: int) -> tuple[int, int]:
    """Pixel rows [top, bottom) of a rank's band: whole rows of patches, as equal as possible.

    Raises:
        UsageError: if the height is not a multiple of the patch, or there are more ranks than rows of patches.
    """
    rows, rest = divmod(height, patch)
    if rest:
        raise UsageError(f"height {height} is not a multiple of the patch size {patch}: use {height - rest}")
    if world_size > rows:
        raise UsageError(f"{world_size} ranks for {rows} rows of patches: use at most {rows}")
    return rank * rows // world_size * patch, (rank + 1) * rows // world_size * patch
