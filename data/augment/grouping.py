"""Different operations for the images of one batch: those of one operation are taken out, changed and put back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CHUNK = 8
Apply = Callable[[int, int, Tensor, Tensor], Tensor]


def apply_in_groups(images: Tensor, choice: Tensor, kinds: int, apply: Apply) -> Tensor:
    """Changes contiguous uint8 `images` (B, C, H, W) in place, in as many layers as `choice` (L, B) has rows.

    In a layer, the images i that have chosen k become apply(layer, k, images[i], i); those that have chosen -1 stay.
    The host waits once for the sizes of the groups of a block of images.
    """
    positions = torch.arange(-1, kinds, device=images.device)
    counts = (choice.unsqueeze(2) == positions).sum(1).tolist()
    for layer, count in enumerate(counts):
        groups = choice[layer].argsort(stable=True).split(count)
        for kind, group in enumerate(groups[1:]):  # groups[0] stays
            # On CPUs, larger temporaries would leave the caches and be fetched from the kernel page by page.
            for index in group.split(CHUNK if images.device.type == "cpu" else max(len(group), 1)):
                if len(index):
                    _put(images, index, apply(layer, kind, images.index_select(0, index), index))
    return images


def _put(images: Tensor, index: Tensor, changed: Tensor) -> None:
    # CPUs copy by element here, so the fewer and wider the elements, the better.
    wide = torch.complex128 if images[0].numel() % 16 == 0 and images.storage_offset() % 16 == 0 else torch.uint8
    images.flatten(1).view(wide).index_copy_(0, index, changed.flatten(1).view(wide))
