"""Different operations for the images of one batch: those of one operation are taken out, changed and put back."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Apply = Callable[[int, int, Tensor, Tensor], Tensor]

CHUNK = 4
"""Images that a CPU changes together: more would leave its caches."""

# glibc gives freed memory back to the kernel and fetches it anew page by page, at every operation, unless something
# large was freed once. This is never touched, so it takes no memory.
torch.empty(30 << 20, dtype=torch.uint8)


def apply_in_groups(images: Tensor, choice: Tensor, kinds: int, apply: Apply) -> Tensor:
    """Changes contiguous uint8 `images` (B, C, H, W) in place, in as many layers as `choice` (L, B) has rows.

    In a layer, the images i that have chosen k become apply(layer, k, images[i], i); those that have chosen -1 stay.
    The host waits once, for the sizes of the groups.
    """
    positions = torch.arange(-1, kinds, device=images.device)
    counts = (choice.unsqueeze(2) == positions).sum(1).tolist()
    for layer, count in enumerate(counts):
        groups = choice[layer].argsort(stable=True).split(count)
        for kind, group in enumerate(groups[1:]):  # groups[0] stays
            if len(group):
                for index in group.split(CHUNK if images.device.type == "cpu" else len(group)):
                    _put(images, index, apply(layer, kind, images.index_select(0, index), index))
    return images


def _put(images: Tensor, index: Tensor, changed: Tensor) -> None:
    # Copied by element, so the fewer and wider the elements, the better; the widest are not on every device.
    wide = torch.complex128 if images.device.type == "cpu" else torch.int64
    if images[0].numel() % wide.itemsize or images.storage_offset() % wide.itemsize:
        wide = torch.uint8
    images.flatten(1).view(wide).index_copy_(0, index, changed.flatten(1).view(wide))
