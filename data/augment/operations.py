"""RandAugment's operations on the images of a batch, each image with its own argument.

Every function computes what Pillow computes, and rounds as Pillow does, which truncates after blending and after
interpolation. Images are uint8 tensors (n, 3, H, W), arguments are tensors (n,); the result is a new uint8 tensor
(n, 3, H, W) on the same device. `OPERATIONS` gives the argument of each operation at a magnitude.

Sources: timm/data/auto_augment.py; Pillow's ImageOps, ImageEnhance and libImaging/Geometry.c.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Interpolation = Literal["bilinear", "bicubic"]

FULL = 10.0
"""The magnitude at which an operation reaches its full strength, and the largest that is drawn."""

IMAGENET_MEAN = (124, 116, 104)
"""ImageNet's mean in bytes as timm rounds it: the fill colour of geometric operations."""


# --------------------------------------------------------------------------------------------------------------- colour


def auto_contrast(images: Tensor) -> Tensor:
    """Stretches each channel so that its darkest value becomes 0 and its lightest 255; a flat channel stays."""
    low, high = images.amin((2, 3), keepdim=True).float(), images.amax((2, 3), keepdim=True).float()
    flat = (high <= low).float()
    scale = 255 / (high - low + 255 * flat)
    return _to_bytes(images.float().sub_(low * (1 - flat)).mul_(scale).add_(_EPSILON))


def equalize(images: Tensor) -> Tensor:
    """Spreads the values of each channel so that their histogram becomes even; a channel of one value stays."""
    n, _, H, W = images.shape
    row = 256 * torch.arange(n * 3, device=images.device, dtype=torch.int32).view(n, 3, 1, 1)
    entry = (images.int() + row).flatten()
    counts = torch.bincount(entry, minlength=n * 3 * 256).view(n * 3, 256)
    # Pillow excludes the last value that occurs from the step, so that it maps to 255.
    last = 255 - counts.flip(1).ne(0).int().argmax(1, keepdim=True)
    step = (H * W - counts.gather(1, last)) // 255
    table = (counts.cumsum(1) - counts + step // 2) // step.clamp(min=1)
    identity = torch.arange(256, device=images.device).expand_as(table)
    table = torch.where(step == 0, identity, table.clamp(max=255)).to(torch.uint8)
    return table.flatten().index_select(0, entry).view_as(images)


def invert(images: Tensor) -> Tensor:
    """Turns every value v into 255 - v."""
    return ~images


def posterize(images: Tensor, bits: Tensor) -> Tensor:
    """Keeps the `bits` highest of the 8 bits of every value.

    With 0 bits the image is black, as in the Pillow that DeiT used; Pillow refuses 0 today, and so does timm.
    """
    mask = 256 - torch.exp2(8 - bits.clamp(0, 8))
    return images & mask.to(torch.uint8).view(-1, 1, 1, 1)


def solarize(images: Tensor, threshold: Tensor) -> Tensor:
    """Inverts the values at or above `threshold` (0 to 256)."""
    bound = threshold.view(-1, 1, 1, 1)
    # `images >= bound`, in the two operations that CPUs vectorise for bytes.
    chosen = torch.maximum(images, bound.clamp(max=255).to(torch.uint8)) == images
    return images ^ chosen.view(torch.uint8) * (255 * (bound < 256)).to(torch.uint8)


def solarize_add(images: Tensor, add: Tensor) -> Tensor:
    """Adds `add` (0 to 128) to the values below 128."""
    dark = 1 - (images >> 7)
    return images + dark * add.clamp(0, 128).to(torch.uint8).view(-1, 1, 1, 1)


def color(images: Tensor, factor: Tensor) -> Tensor:
    """Blends the image with its grey version: 0 gives grey, 1 the image, 2 twice the saturation."""
    return _blend(_grey(images), images, factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Blends the image with the flat grey of its mean luminance: 0 gives that grey, 1 the image."""
    mean = _grey(images).mean((1, 2, 3), keepdim=True)
    return _blend(mean.add_(0.5).floor_(), images, factor)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends the image with black: 0 gives black, 1 the image."""
    return _to_bytes(images.float().mul_(factor.view(-1, 1, 1, 1)))


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Blends the image with itself smoothed by (1 1 1; 1 5 1; 1 1 1) / 13, whose border pixels stay: 1 is the image."""
    inner = images[..., 1:-1, 1:-1]
    short = images.short()
    sum_x = (short[..., :-2] + short[..., 1:-1]).add_(short[..., 2:])
    total = (sum_x[..., :-2, :] + sum_x[..., 1:-1, :]).add_(sum_x[..., 2:, :]).add_(short[..., 1:-1, 1:-1], alpha=4)
    smooth = total.float().mul_(1 / 13).add_(0.5 + _EPSILON).floor_()
    sharpened = images.clone()
    sharpened[..., 1:-1, 1:-1] = _blend(smooth, inner, factor)
    return sharpened


# ------------------------------------------------------------------------------------------------------------- geometry


def rotate(images: Tensor, degrees: Tensor, interpolation: Interpolation) -> Tensor:
    """Rotates counter-clockwise about the centre by `degrees`.

    Bicubic is torch's (a = -0.75) where Pillow's is a = -1: a difference of less than 1/255 on photographs.
    """
    n, _, H, W = images.shape
    angle = torch.deg2rad(degrees.float()).view(n, 1, 1)
    x = torch.arange(W, device=images.device) + (0.5 - W / 2)
    y = (torch.arange(H, device=images.device) + (0.5 - H / 2)).view(H, 1)
    # The source of each pixel, in pixels from the centre.
    source_x, source_y = angle.cos() * x - angle.sin() * y, angle.cos() * y + angle.sin() * x
    inside = torch.maximum(source_x.abs() / W, source_y.abs() / H).le_(0.5).unsqueeze(1)
    # Replicated padding and the complex view are each a tenth faster on CPUs than grid_sample's own border mode and a
    # stack of the two coordinates.
    padded = F.pad(images.float(), (2, 2, 2, 2), "replicate")
    grid = torch.view_as_real(torch.complex(source_x.mul_(2 / (W + 4)), source_y.mul_(2 / (H + 4))))
    turned = F.grid_sample(padded, grid, interpolation, align_corners=False)
    colour = torch.tensor(IMAGENET_MEAN, device=images.device, dtype=torch.float32).view(3, 1, 1)
    return _to_bytes(turned.sub_(colour).mul_(inside).add_(colour + _EPSILON))


def shear_x(images: Tensor, factor: Tensor, interpolation: Interpolation) -> Tensor:
    """Moves row y to the left by factor * (y + 1/2) pixels."""
    y = torch.arange(images.shape[2], device=images.device) + 0.5
    return _slide(images, factor.view(-1, 1) * y, interpolation)


def shear_y(images: Tensor, factor: Tensor, interpolation: Interpolation) -> Tensor:
    """Moves column x up by factor * (x + 1/2) pixels."""
    return shear_x(images.mT.contiguous(), factor, interpolation).mT


def translate_x(images: Tensor, part: Tensor, interpolation: Interpolation) -> Tensor:
    """Moves the image to the left by `part` of its width."""
    offset = (part * images.shape[3]).view(-1, 1).expand(-1, images.shape[2])
    return _slide(images, offset, interpolation)


def translate_y(images: Tensor, part: Tensor, interpolation: Interpolation) -> Tensor:
    """Moves the image up by `part` of its height."""
    n, _, H, W = images.shape
    # All rows move by the same offset, so a plane is one line, in which the next row's pixel is W elements further.
    return _slide(images.view(n, 3, 1, H * W), (part * H).view(n, 1), interpolation, step=W).view(n, 3, H, W)


# ----------------------------------------------------------------------------------------------------------- primitives

# Weights that sum to one in the reals may miss it in float32, and truncation would then lose a whole level.
_EPSILON = 1e-3


def _to_bytes(values: Tensor) -> Tensor:
    """Clips floating `values`, which may be overwritten, to [0, 255] and truncates them to uint8 of the same shape."""
    # Through int16: CPUs vectorise float to int16 and int16 to uint8, but not float to uint8.
    return values.clamp_(0, 255).short().to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    red, green, blue = images.float().split(1, dim=1)
    return (0.299 * red).add_(green, alpha=0.587).add_(blue, alpha=0.114).add_(0.5).floor_()


def _blend(degenerate: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    return _to_bytes(images.float().sub_(degenerate).mul_(factor.view(-1, 1, 1, 1)).add_(degenerate))


def _slide(lines: Tensor, offset: Tensor, interpolation: Interpolation, step: int = 1) -> Tensor:
    """out[..., y, x] = lines[..., y, x + step * offset[y]] for `offset` (n, R), between pixels interpolated.

    `lines` are (n, 3, R, L), `step` is the distance of neighbouring pixels. The fraction of a pixel is constant along a
    line, so a filter of few taps and a move by whole pixels do it.
    """
    n, _, R, L = lines.shape
    reach, kernel = KERNELS[interpolation]
    whole = (offset + 0.5).floor()
    taps = torch.arange(-reach, reach + 1, device=lines.device)
    weights = kernel(((offset - whole).view(n, 1, R, 1, 1) - taps).abs()).unbind(-1)
    first, last = [lines[..., :step]] * reach, [lines[..., -step:]] * reach
    padded = torch.cat([*first, lines, *last], dim=-1).float()
    moved = torch.addcmul(torch.tensor(_EPSILON, device=lines.device), padded[..., :L], weights[0])
    for tap, weight in enumerate(weights[1:], 1):
        moved.addcmul_(padded[..., tap * step : tap * step + L], weight)
    moved = _to_bytes(moved)
    empty = torch.tensor(IMAGENET_MEAN, device=lines.device, dtype=torch.uint8).view(1, 3, 1, 1).expand(n, 3, R, L)
    framed = torch.cat([empty, moved, empty], dim=-1).flatten()
    line = torch.arange(n * 3 * R, device=lines.device).view(n, 3, R)
    start = line * (3 * L) + L + (step * whole.long()).clamp_(-L, L).view(n, 1, R)
    # One copy of L neighbours per line: ten times as fast on CPUs as a gather, which looks up every pixel.
    return framed.unfold(0, L, 1).index_select(0, start.flatten()).view(n, 3, R, L)


def _triangle(t: Tensor) -> Tensor:
    return (1 - t).clamp(min=0)


def _cubic(t: Tensor) -> Tensor:
    """Keys' kernel with a = -1, for t >= 0: what Pillow's transforms use (its resize takes a = -1/2)."""
    return torch.where(t <= 1, (t - 2) * t * t + 1, torch.where(t < 2, ((5 - t) * t - 8) * t + 4, 0))


KERNELS: dict[str, tuple[int, Callable[[Tensor], Tensor]]] = {"bilinear": (1, _triangle), "bicubic": (2, _cubic)}


# ------------------------------------------------------------------------------------------------------------- strength


@dataclass(frozen=True)
class Operation:
    """One of timm's operations: what it does to the pixels, and its argument at a magnitude.

    `argument` maps magnitude / 10, a tensor (n,) in [0, 1], to the argument of `apply`; None if there is none. A
    `signed` operation takes magnitudes of either sign; a `geometric` one also takes the interpolation.
    """

    name: str
    apply: Callable[..., Tensor]
    argument: Callable[[Tensor], Tensor] | None = None
    signed: bool = False
    geometric: bool = False

    def __call__(self, images: Tensor, magnitude: Tensor, interpolation: Interpolation = "bicubic") -> Tensor:
        """Applies it to uint8 `images` (n, 3, H, W) at `magnitude` (n,); returns new uint8 images (n, 3, H, W)."""
        arguments = [] if self.argument is None else [self.argument(magnitude / FULL)]
        return self.apply(images, *arguments, *[interpolation] * self.geometric)


def _enhance(level: Tensor) -> Tensor:
    return (1 + 0.9 * level).clamp(min=0.1)


OPERATIONS = (
    Operation("AutoContrast", auto_contrast),
    Operation("Equalize", equalize),
    Operation("Invert", invert),
    Operation("Rotate", rotate, lambda level: 30 * level, signed=True, geometric=True),
    Operation("SolarizeAdd", solarize_add, lambda level: (110 * level).floor()),
    Operation("ShearX", shear_x, lambda level: 0.3 * level, signed=True, geometric=True),
    Operation("ShearY", shear_y, lambda level: 0.3 * level, signed=True, geometric=True),
    Operation("TranslateXRel", translate_x, lambda level: 0.45 * level, signed=True, geometric=True),
    Operation("TranslateYRel", translate_y, lambda level: 0.45 * level, signed=True, geometric=True),
    Operation("PosterizeIncreasing", posterize, lambda level: 4 - (4 * level).floor()),
    Operation("SolarizeIncreasing", solarize, lambda level: 256 - (256 * level).floor()),
    Operation("ColorIncreasing", color, _enhance, signed=True),
    Operation("ContrastIncreasing", contrast, _enhance, signed=True),
    Operation("BrightnessIncreasing", brightness, _enhance, signed=True),
    Operation("SharpnessIncreasing", sharpness, _enhance, signed=True),
)
"""The operations of timm's `inc1` policies: the larger the magnitude, the stronger each."""
