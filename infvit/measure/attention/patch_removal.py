"""Faithfulness of maps: how fast the prediction degrades as patches are removed, most or least relevant first.

A map is faithful if the prediction degrades early with the most relevant patches first (MoRF) and late with the least
relevant first (LeRF): arXiv:1509.06321; for whole patches of a Vision Transformer arXiv:2012.09838.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.v2.functional import gaussian_blur

from infvit.errors import UsageError, expect
from infvit.measure.attention.blocks import backbone

Remove = Callable[[Tensor], Tensor]
"""Logits (B, classes) of the images without some patches, the same number in each: bool (B, h, w)."""

REMOVALS = {
    "mean": "painted in their image's mean colour",
    "blur": "blurred away",
    "tokens": "dropped as tokens",
}


class Faithfulness(NamedTuple):
    """The prediction for each image after every share of removed patches: (B, 2, shares).

    The first order is the most relevant patches first, the second the least relevant first.

    Attributes:
        kept: the probability of the class predicted for the intact image, divided by its probability there; 1 at share
            0, and may exceed 1.
        correct: whether the most probable class is the label.
    """

    kept: Tensor
    correct: Tensor


@torch.no_grad()
def remover(removal: str, model: nn.Module, images: Tensor, grid: tuple[int, int]) -> Remove:
    """The removal of patches from these images that has a name in `REMOVALS`.

    The blur has the side of a patch as its standard deviation, which leaves no detail of that size.

    Args:
        removal: "mean": a patch gets the mean colour of its image. "blur": it is blurred with its image. "tokens": its
            token is removed from the sequence before the first block; the others keep their positions.
        model: in evaluation mode.
        images: (B, C, H, W), normalised.
        grid: rows and columns of patches.

    Raises:
        UsageError: if the model's tokens cannot be dropped, because it has no class token that is left at the end.
    """
    if removal == "tokens":
        return _token_remover(model, images)
    sides = images.shape[-2:]
    if removal == "mean":
        others = images.mean((2, 3), keepdim=True)
    else:
        sigma = [side / cells for side, cells in zip(sides, grid, strict=True)]
        # Reflection at the borders limits the kernel to one pixel less than a side.
        kernel = [2 * min(round(3 * s), side - 1) + 1 for s, side in zip(sigma, sides, strict=True)]
        others = gaussian_blur(images, kernel[::-1], sigma[::-1])
    return lambda removed: model(torch.where(enlarged(removed, sides)[:, None], others, images))


def _token_remover(model: nn.Module, images: Tensor) -> Remove:
    """Works without masks, because all images of a batch lose equally many tokens.

    Operators that depend on the index in the sequence, such as cosFormer, see the index in the shorter one.
    """
    net = backbone(model)
    if not net.by_class_token:
        raise UsageError(
            f"removal=tokens needs a class token, which {type(model).__name__} here does not read: use "
            "removal=mean or removal=blur"
        )
    tokens = net.embed(images)

    def without(removed: Tensor) -> Tensor:
        kept = ~F.pad(removed.flatten(1), (net.prefix, 0))  # the class token stays
        x = tokens[kept].view(len(removed), -1, tokens.shape[-1])
        for _, step in net.run(x):
            x = step.out
        return net.logits(x)

    return without


def shares(step: float) -> list[float]:
    """0, step, 2 step, ..., 1, the last step possibly shorter; UsageError unless 0 < step ≤ 1."""
    expect(0 < step <= 1, f"step={step} is not a share of the patches", "0 < step ≤ 1, such as 0.1")
    count = int(1 / step + 1e-9)
    inner = [round(i * step, 9) for i in range(count + 1)]
    return inner if inner[-1] > 1 - 1e-9 else [*inner, 1.0]


@torch.no_grad()
def faithfulness(remove: Remove, relevance: Tensor, labels: Tensor, at: Sequence[float]) -> Faithfulness:
    """Removes patches by their relevance (B, h, w), in both orders; those of equal relevance in a random one, seed 0.

    `at` holds the shares of removed patches from 0 to 1, each rounded to a number of patches.
    """
    ranks = _ranks(relevance)
    N = ranks[0].numel()
    counts = [round(share * N) for share in at]
    # No patch and all patches are the same in both orders.
    ends = {0: remove(ranks < 0), N: remove(ranks < N)}
    first = ends[0].float().softmax(-1)
    predicted = first.argmax(-1, keepdim=True)
    kept, correct = [], []
    for order in (ranks, N - 1 - ranks):
        for count in counts:
            logits = ends[count] if count in ends else remove(order < count)
            probability = logits.float().softmax(-1)
            kept.append(probability.gather(1, predicted) / first.gather(1, predicted))
            correct.append(probability.argmax(-1, keepdim=True) == labels[:, None])
    return Faithfulness(*(torch.cat(curves, 1).unflatten(1, (2, -1)) for curves in (kept, correct)))


def areas(kept: Tensor, at: Sequence[float]) -> tuple[Tensor, Tensor]:
    """MoRF-AOC and LeRF-AUC of each image, (B,) each, higher is better.

    The area over the curve of the most relevant patches first, 1 − ∫ p(share) / p(0) d(share), and the area under that
    of the least relevant first, by the trapezoidal rule. p is the probability of the class predicted for the intact
    image, right or wrong. A MoRF-AOC of 0 means that removal changes nothing; below 0 the prediction becomes more
    confident. arXiv:2603.00175 reports the mean over images in per cent, "MoRF-AOC", but neither how patches are
    removed nor whether the curve is relative to the intact image; this is our interpretation.
    """
    under = torch.trapezoid(kept.double(), torch.tensor(at, dtype=torch.float64, device=kept.device))
    return 1 - under[:, 0], under[:, 1]


def enlarged(maps: Tensor, size: Sequence[int], mode: str = "nearest") -> Tensor:
    """Maps over patches as maps over pixels, "nearest" or "bilinear": (B, h, w) → (B, *size) of the same dtype."""
    like = maps[:, None].float() if maps.dtype == torch.bool else maps[:, None]
    return F.interpolate(like, list(size), mode=mode)[:, 0].to(maps.dtype)


def _ranks(relevance: Tensor) -> Tensor:
    """The rank of each patch, 0 for the most relevant: (B, h, w)."""
    values = relevance.flatten(1)
    draw = torch.Generator().manual_seed(0)
    shuffled = torch.rand(values.shape, generator=draw).argsort(1).to(values.device)
    order = shuffled.gather(1, values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True))
    return order.argsort(1).view(relevance.shape)
