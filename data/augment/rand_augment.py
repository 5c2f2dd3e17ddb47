"""RandAugment on the device: every image of a batch draws its own operations and magnitudes.

Source: Cubuk et al., "RandAugment", arXiv:1909.13719, by the rules of timm/data/auto_augment.py, whose
`rand-m9-mstd0.5-inc1` is DeiT's and the default here.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from data.augment.grouping import apply_in_groups
from data.augment.operations import FULL, IMAGENET_MEAN, INCREASING, KERNELS, ORIGINAL, Interpolation, to_bytes
from data.draws import OPERATIONS, fresh_keys, normals, uniforms
from infvit.errors import UsageError


class Draw(NamedTuple):
    """What a batch of n images undergoes in each of L layers.

    `operation` (L, n): index into RandAugment.operations, -1 where the image passes. `magnitude` (L, n): in [-10, 10].
    """

    operation: Tensor
    magnitude: Tensor


class RandAugment(nn.Module):
    """Applies to each image `num_layers` operations drawn with replacement, each with probability `probability`.

    Magnitudes are drawn from N(magnitude, magnitude_std) and clipped to [0, 10]; operations that have two directions
    take one by a fair coin. `fill` (bytes) and `interpolation` are for the geometric operations. DeiT's recipe uses
    bicubic, where timm without a hint tosses a coin between bilinear and bicubic.

    All is drawn from the key of each image, so its neighbours in the batch do not matter. The batch is grouped by
    operation, so the number of operations launched on a GPU does not depend on the batch; the host waits for the device
    to learn the groups' sizes.
    """

    def __init__(
        self,
        num_layers: int = 2,
        magnitude: float = 9.0,
        magnitude_std: float = 0.5,
        increasing: bool = True,
        probability: float = 0.5,
        fill: tuple[int, int, int] = IMAGENET_MEAN,
        interpolation: Interpolation = "bicubic",
        inplace: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= magnitude <= FULL:
            raise UsageError(f"RandAugment's magnitude is {magnitude}; expected 0 to 10: set magnitude=9 as DeiT does.")
        if not 0 <= probability <= 1:
            raise UsageError(f"RandAugment's probability is {probability}; expected 0 to 1.")
        if interpolation not in KERNELS:
            raise UsageError(f"RandAugment's interpolation is {interpolation!r}; expected 'bilinear' or 'bicubic'.")
        self.num_layers = num_layers
        self.magnitude = magnitude
        self.magnitude_std = magnitude_std
        self.probability = probability
        self.operations = INCREASING if increasing else ORIGINAL
        self.fill = fill
        self.interpolation = interpolation
        self.inplace = inplace

    def extra_repr(self) -> str:
        return (
            f"num_layers={self.num_layers}, magnitude={self.magnitude}, magnitude_std={self.magnitude_std}, "
            f"probability={self.probability}, interpolation={self.interpolation!r}"
        )

    def draw(self, keys: Tensor) -> Draw:
        """What the images with these keys (n,) undergo; see data/draws.py."""
        layers, choices = self.num_layers, len(self.operations)
        u = uniforms(keys, OPERATIONS, 3 * layers)
        operation = (u[:layers] * choices).long()
        passes = u[layers : 2 * layers] >= self.probability
        normal = normals(keys, OPERATIONS + torch.arange(3 * layers, 4 * layers, device=keys.device).view(-1, 1))
        magnitude = (self.magnitude + self.magnitude_std * normal).clamp_(0, FULL)
        signed = torch.tensor([op.signed for op in self.operations], device=keys.device)[operation]
        negative = signed & (u[2 * layers :] < 0.5)
        return Draw(operation.masked_fill(passes, -1), torch.where(negative, -magnitude, magnitude))

    @torch.no_grad()
    def forward(self, images: Tensor, keys: Tensor | None = None, draw: Draw | None = None) -> Tensor:
        """Augments `images` (B, 3, H, W), uint8 in [0, 255] or floating in [0, 1]; gives the same shape and dtype.

        The work is done on bytes, as Pillow does it: uint8 is the fast way in, and floating values are rounded to the
        nearest 1/255. With `inplace`, contiguous uint8 images are overwritten and returned. `keys` (B,) are those of
        the images; without, they come from the default generator of the device. `draw` says what to do instead of
        `self.draw(keys)`. Raises UsageError for another shape or dtype.
        """
        if images.ndim != 4 or images.shape[1] != 3:
            raise UsageError(f"RandAugment got images of shape {tuple(images.shape)}; expected (B, 3, H, W).")
        if draw is None:
            draw = self.draw(fresh_keys(len(images), images.device) if keys is None else keys)
        if images.dtype == torch.uint8:
            own = self.inplace and images.is_contiguous()
            return self._augment(images if own else images.clone(memory_format=torch.contiguous_format), draw)
        if images.is_floating_point():
            rounded = to_bytes(images.float().mul(255).add_(0.5)).contiguous()
            return self._augment(rounded, draw).to(images.dtype).div_(255)
        raise UsageError(f"RandAugment got images of {images.dtype}; expected uint8, or floating in [0, 1].")

    def _augment(self, images: Tensor, draw: Draw) -> Tensor:
        def apply(layer: int, kind: int, chosen: Tensor, index: Tensor) -> Tensor:
            return self.operations[kind](chosen, draw.magnitude[layer, index], self.fill, self.interpolation)

        return apply_in_groups(images, draw.operation, len(self.operations), apply)
