"""RandAugment on the device: every image of a batch draws its own operations and magnitudes.

Source: Cubuk et al., "RandAugment", arXiv:1909.13719, by the rules of timm/data/auto_augment.py, whose
`rand-m9-mstd0.5-inc1` is DeiT's and the default here.
"""

import torch
from torch import Tensor, nn

from data.augment.operations import FULL, KERNELS, OPERATIONS, Interpolation
from data.draws import OPERATIONS as STREAM
from data.draws import normals, uniforms
from infvit.errors import expect

CHUNK = 4
"""Images that a CPU changes together: more would not fit into its caches."""

# glibc returns freed memory to the kernel and fetches it again page by page at every operation, unless one large block
# was freed before. This block is never written, so it takes no memory.
torch.empty(30 << 20, dtype=torch.uint8)


class RandAugment(nn.Module):
    """Applies to each image `num_layers` operations drawn with replacement, each with probability `probability`.

    Everything is drawn from the key of each image, so its neighbours in the batch do not matter. The batch is grouped
    by operation, so the number of kernels launched on a GPU does not depend on the batch size; the host waits once per
    call for the device, to learn the sizes of the groups.

    Args:
        num_layers: operations per image.
        magnitude, magnitude_std: magnitudes are drawn from this normal distribution and clipped to [0, 10]. Operations
            that have two directions draw one with equal odds.
        probability: of each operation to be applied.
        interpolation: of geometric operations. DeiT uses bicubic; timm's default draws bilinear or bicubic.
    """

    def __init__(
        self,
        num_layers: int = 2,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        probability: float = 0.5,
        interpolation: Interpolation = "bicubic",
    ) -> None:
        super().__init__()
        expect(0 <= magnitude <= FULL, f"RandAugment's magnitude is {magnitude}", "0 to 10; DeiT's is magnitude=9")
        expect(0 <= probability <= 1, f"RandAugment's probability is {probability}", "0 to 1")
        found = f"RandAugment's interpolation is {interpolation!r}"
        expect(interpolation in KERNELS, found, "'bilinear' or 'bicubic'")
        self.num_layers, self.probability, self.interpolation = num_layers, probability, interpolation
        self.magnitude, self.magnitude_std = magnitude, magnitude_std

    def draw(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Returns operations and magnitudes for images with these keys (n,), each (num_layers, n); see data/draws.py.

        An operation is an index into OPERATIONS, -1 where the image is left as it is; a magnitude is in [-10, 10].
        """
        layers = self.num_layers
        u = uniforms(keys, STREAM, 3 * layers)
        operation = (u[:layers] * len(OPERATIONS)).long()
        skipped = u[layers : 2 * layers] >= self.probability
        normal = normals(keys, STREAM + torch.arange(3 * layers, 4 * layers, device=keys.device).view(-1, 1))
        magnitude = (self.magnitude + self.magnitude_std * normal).clamp_(0, FULL)
        signed = torch.tensor([op.signed for op in OPERATIONS], device=keys.device)[operation]
        negative = signed & (u[2 * layers :] < 0.5)
        return operation.masked_fill(skipped, -1), torch.where(negative, -magnitude, magnitude)

    @torch.no_grad()
    def forward(self, images: Tensor, keys: Tensor) -> Tensor:
        """Augments uint8 images (B, 3, H, W) with `keys` (B,) in place; returns them, or a copy if not contiguous."""
        images = images.contiguous()
        operations, magnitudes = self.draw(keys)
        choices = torch.arange(-1, len(OPERATIONS), device=images.device)
        sizes = (operations.unsqueeze(2) == choices).sum(1).tolist()
        for operation, magnitude, counts in zip(operations, magnitudes, sizes, strict=True):
            groups = operation.argsort(stable=True).split(counts)
            for op, group in zip(OPERATIONS, groups[1:], strict=True):  # groups[0] is left as it is
                for index in group.split(CHUNK if images.device.type == "cpu" else max(len(group), 1)):
                    if len(index):
                        changed = op(images.index_select(0, index), magnitude[index], self.interpolation)
                        _put(images, index, changed)
        return images


def _put(images: Tensor, index: Tensor, changed: Tensor) -> None:
    """Copies `changed` to the places `index` of contiguous `images`."""
    # Copied element by element: the wider the elements, the faster; the widest type does not exist on every device.
    wide = torch.complex128 if images.device.type == "cpu" else torch.int64
    if images[0].numel() % wide.itemsize or images.storage_offset() % wide.itemsize:
        wide = torch.uint8
    images.flatten(1).view(wide).index_copy_(0, index, changed.flatten(1).view(wide))
