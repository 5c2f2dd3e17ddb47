"""The tokens of one image over several processes: two small all-reduces a layer, whatever the number of tokens."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.device_mesh import DeviceMesh

from infvit.attention.sums import Sums
from infvit.errors import UsageError
from infvit.highres import stages
from infvit.positions import resample
from infvit.vit import VisionTransformer


class TokenParallel(nn.Module):
    """A model whose images are cut into horizontal bands, one for each process of a device mesh.

    Each process gives its band and gets the logits of the whole image. Every process holds the class token, but only
    the first counts it in the sums. The gradients of one process are the mean over the processes of theirs, which is
    what DistributedDataParallel makes of them: wrap this module in it to train.

    Args:
        model: a VisionTransformer of Linear-InfSA layers, with equal weights in all processes.
        mesh: one-dimensional, e.g. `init_device_mesh("cuda", (8,))`.

    Attributes:
        communicated: bytes that this process has put into all-reduces for the sums, forward and backward.

    Raises:
        UsageError: if a layer is not Linear-InfSA, or the model trains with stochastic depth, whose processes would
            skip different branches.
    """

    def __init__(self, model: VisionTransformer, mesh: DeviceMesh) -> None:
        super().__init__()
        self.model, self.group, self.rank = model, mesh.get_group(), mesh.get_local_rank()
        self.processes, self.communicated = mesh.size(), 0

    def forward(self, band: Tensor) -> Tensor:
        """This process's band of the images, (B, C, h, width), the bands in order of the processes → (B, classes)."""
        model = self.model
        blocks = stages.blocks_of(model)
        if model.training and any(getattr(block.drop_path, "drop_prob", 0) for block in blocks):
            raise UsageError("the model trains with stochastic depth: tokens in parallel expect drop_path_rate=0")
        x, patches = self._embed(band)
        # Tokens that count here: the first process has the class token, the others only their patches.
        counted = slice(None) if self.rank == 0 else slice(model.num_prefix_tokens, None)
        for block in blocks:
            queries = self._all(stages.query_sums(block, x[:, counted]))
            qbar = stages.attention(block).qbar(queries)
            values = self._all(stages.token_sums(block, x[:, counted], qbar))
            if block is blocks[-1] and model.cls_token is not None:
                x = x[:, :1]  # nothing else reaches the head
            x = stages.advance(block, x, stages.row(block, values, x.dtype))
        x = model.norm(x)
        pooled = x[:, 0] if model.cls_token is not None else self._summed(x.sum(1)) / patches
        return model.head(model.pre_logits(pooled))

    def _embed(self, band: Tensor) -> tuple[Tensor, int]:
        """The band's tokens, the class token first, and how many patches the whole image has."""
        model = self.model
        rows, columns = model.grid(*band.shape[-2:])
        all_rows = torch.zeros(self.processes, dtype=torch.int64, device=band.device)
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

    def _all(self, part: Sums) -> Sums:
        """The sums of all processes' tokens from those of this one's, in one all-reduce."""
        both = self._summed(torch.cat([part.weight.unsqueeze(-1), part.weighted], dim=-1))
        return Sums(both[..., 0], both[..., 1:])

    def _summed(self, part: Tensor) -> Tensor:
        return _AllReduce.apply(part, self.group, self._count)

    def _count(self, sent: Tensor) -> None:
        self.communicated += sent.numel() * sent.element_size()


class _AllReduce(torch.autograd.Function):
    """The sum over processes; each part's gradient is the sum over processes of the gradients of the whole."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: Any, count: Callable[[Tensor], None]) -> Tensor:
        ctx.group, ctx.count = group, count
        return _reduced(part, group, count)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        return _reduced(grads[0], ctx.group, ctx.count), None, None


def _reduced(part: Tensor, group: Any, count: Callable[[Tensor], None]) -> Tensor:
    total = part.contiguous().clone()
    distributed.all_reduce(total, group=group)
    count(total)
    return total


def band(height: int, patch: int, process: int, processes: int) -> tuple[int, int]:
    """First and last-but-one pixel row of a process's band: whole rows of patches, as equal as they go.

    Raises:
        UsageError: if the height is not a multiple of the patch, or there are more processes than rows of patches.
    """
    rows, rest = divmod(height, patch)
    if rest:
        raise UsageError(f"height {height} is not a multiple of the patch size {patch}: use {height - rest}")
    if processes > rows:
        raise UsageError(f"{processes} processes for {rows} rows of patches: use at most {rows}")
    return process * rows // processes * patch, (process + 1) * rows // processes * patch
