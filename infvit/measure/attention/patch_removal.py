"""How fast a model forgets its answer when patches are taken away, the most or the least relevant first.

A map is faithful if the answer goes early when what it calls most relevant goes first (MoRF), and late when that goes
last (LeRF): arXiv:1509.06321, and for whole patches of a Vision Transformer arXiv:2012.09838.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from infvit.errors import UsageError
from infvit.measure.attention.blocks import backbone


class Remove(Protocol):
    """The logits (B, classes) of the images without some of their patches, as many of each: bool (B, h, w)."""

    def __call__(self, removed: Tensor) -> Tensor: ...


class Curves(NamedTuple):
    """What is left of each image's answer after every share of patches removed, (B, shares).

    Attributes:
        kept: the probability of the class predicted for the intact image, over its probability there; 1 at share 0. It
            may rise above 1.
        correct: whether the most probable class is the label.
    """

    kept: Tensor
    correct: Tensor


class Faithfulness(NamedTuple):
    """Both orders of removal: the most relevant patches first, the least relevant first."""

    morf: Curves
    lerf: Curves


class Repainted:
    """Puts other pixels in the place of removed patches, for any model.

    Args:
        model: logits of normalised images.
        images: (B, C, H, W), normalised.
        others: what the pixels become, of a shape that broadcasts to that of `images`.
    """

    def __init__(self, model: nn.Module, images: Tensor, others: Tensor) -> None:
        self.model, self.images, self.others = model, images, others

    def __call__(self, removed: Tensor) -> Tensor:
        size = (int(self.images.shape[-2]), int(self.images.shape[-1]))
        return self.model(torch.where(enlarged(removed, size)[:, None], self.others, self.images))


class Dropped:
    """Takes the tokens of removed patches out of the sequence before the first block; the others keep their positions.

    No operator then sees anything of them, whether it takes masks or not, because all images of a batch lose equally
    many. (Some operators refuse `key_padding_mask`, and timm's have none.) One that weighs a token by its place in the
    sequence, such as cosFormer, sees places in the shorter one.

    Raises:
        UsageError: without a class token to read, which alone is left when every patch is gone.
    """

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        self.net = backbone(model)
        if not self.net.by_class_token:
            raise UsageError(
                f"removal=tokens needs a class token, which {type(model).__name__} here does not read: use "
                "removal=mean or removal=blur"
            )
        self.tokens = self.net.embed(images)

    def __call__(self, removed: Tensor) -> Tensor:
        kept = ~F.pad(removed.flatten(1), (self.net.prefix, 0))  # the class token stays
        x = self.tokens[kept].view(len(removed), -1, self.tokens.shape[-1])
        for block in range(len(self.net.operators)):
            x = self.net.step(block, x).out
        return self.net.logits(x)


@torch.no_grad()
def remover(removal: str, model: nn.Module, images: Tensor, grid: tuple[int, int]) -> Remove:
    """How patches are taken from these images, by a name of `REMOVALS`.

    Under the blur, whose standard deviation is the side of a patch, no detail of the size of a patch is left.

    Args:
        removal: "mean": a patch gets the mean colour of its own image. "blur": it shows its image blurred. "tokens":
            see `Dropped`.
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        grid: rows and columns of patches.

    Raises:
        UsageError: if the model's tokens cannot be dropped.
    """
    if removal == "tokens":
        return Dropped(model, images)
    if removal == "mean":
        return Repainted(model, images, images.mean((2, 3), keepdim=True))
    sides = (int(images.shape[-2]), int(images.shape[-1]))
    sigma = [side / cells for side, cells in zip(sides, grid, strict=True)]
    # Reflected at the borders, so it reaches one pixel less than a side at most.
    kernel = [2 * min(round(3 * s), side - 1) + 1 for s, side in zip(sigma, sides, strict=True)]
    return Repainted(model, images, gaussian_blur(images, kernel[::-1], sigma[::-1]))


REMOVALS = {
    "mean": "painted in their image's mean colour",
    "blur": "blurred away",
    "tokens": "dropped as tokens",
}
"""The names of what can happen to patches, and the words for it."""


def shares(step: float) -> list[float]:
    """0, step, 2 step, ..., 1; UsageError if step is no share. The last step may be a shorter one."""
    if not 0 < step <= 1:
        raise UsageError(f"step={step} is no share of the patches: expected 0 < step ≤ 1, such as 0.1")
    count = int(1 / step + 1e-9)
    inner = [round(i * step, 9) for i in range(count + 1)]
    return inner if inner[-1] > 1 - 1e-9 else [*inner, 1.0]


@torch.no_grad()
def faithfulness(remove: Remove, relevance: Tensor, labels: Tensor, at: Sequence[float], seed: int = 0) -> Faithfulness:
    """Removes patches by their relevance, in both orders.

    Args:
        remove: of one of `REMOVALS`.
        relevance: a map over the patches, (B, h, w).
        labels: (B,).
        at: shares of the patches to have removed, from 0 to 1; each is rounded to a number of patches.
        seed: patches of equal relevance go in random order, not row by row.
    """
    ranks = _ranks(relevance, seed)
    N = ranks[0].numel()
    counts = [round(share * N) for share in at]
    # Nothing and everything are the same in both orders.
    ends = {0: remove(ranks < 0), N: remove(ranks < N)}
    first = ends[0].float().softmax(-1)
    predicted = first.argmax(-1, keepdim=True)
    both = []
    for order in (ranks, N - 1 - ranks):
        kept, correct = [], []
        for count in counts:
            logits = ends[count] if count in ends else remove(order < count)
            probability = logits.float().softmax(-1)
            kept.append(probability.gather(1, predicted) / first.gather(1, predicted))
            correct.append(probability.argmax(-1, keepdim=True) == labels[:, None])
        both.append(Curves(torch.cat(kept, 1), torch.cat(correct, 1)))
    return Faithfulness(*both)


def area_under(curves: Curves, at: Sequence[float]) -> Tensor:
    """∫ kept d(share) from 0 to 1 by the trapezoidal rule, per image: (B,)."""
    return torch.trapezoid(curves.kept.double(), torch.tensor(at, dtype=torch.float64, device=curves.kept.device))


def morf_aoc(found: Faithfulness, at: Sequence[float]) -> Tensor:
    """The area over the MoRF curve of each image, 1 − ∫ p(share) / p(0) d(share): (B,), at most 1, higher is better.

    p is the probability of the class that the model predicts for the intact image, so a map is measured by what moves
    the model's own answer, right or wrong. 0 is a map whose removal changes nothing, and below 0 the answer becomes
    surer. arXiv:2603.00175 reports the mean over images in per cent, "MoRF-AOC", without saying what it removes patches
    by, nor whether its curve is relative to the intact image; this is our reading.
    """
    return 1 - area_under(found.morf, at)


def lerf_auc(found: Faithfulness, at: Sequence[float]) -> Tensor:
    """The area under the LeRF curve of each image, ∫ p(share) / p(0) d(share): (B,), higher is better."""
    return area_under(found.lerf, at)


def enlarged(maps: Tensor, size: tuple[int, int], mode: str = "nearest") -> Tensor:
    """Maps over patches as maps over pixels: (B, h, w) → (B, *size) of the same dtype.

    Args:
        mode: "nearest", each pixel has its patch's value, or "bilinear" between the centres of patches.
    """
    like = maps[:, None].float() if maps.dtype == torch.bool else maps[:, None]
    return F.interpolate(like, size, mode=mode)[:, 0].to(maps.dtype)


def _ranks(relevance: Tensor, seed: int) -> Tensor:
    """The place of each patch when the most relevant comes first, from 0: (B, h, w)."""
    values = relevance.flatten(1)
    draw = torch.Generator().manual_seed(seed)
    shuffled = torch.rand(values.shape, generator=draw).argsort(1).to(values.device)
    order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return order.argsort(1).view(relevance.shape)
