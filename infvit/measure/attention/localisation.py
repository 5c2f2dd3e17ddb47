"""Compares maps with bounding boxes, pixel by pixel."""

from typing import NamedTuple

import torch
from torch import Tensor
from torchmetrics.functional.classification import multilabel_auroc, multilabel_average_precision

from infvit.measure.attention.patch_removal import enlarged

THRESHOLDS = tuple(i / 20 for i in range(20))
"""Candidate thresholds, as shares of a map's largest value, for the best overlap."""


class Localisation(NamedTuple):
    """Values per image, (B,) unless noted, all in [0, 1].

    A map of equal values (such as zeros) gets chance level: ROC-AUC 0.5, and the share of pixels in a box otherwise.

    Attributes:
        roc_auc: probability that a pixel in a box has a larger value than one outside, ties counting half.
        pr_auc: average precision, Σ (recall_i − recall_i−1) precision_i over the map's values.
        pointing: whether the map's largest value is in a box; if several pixels share it, the fraction in a box.
        iou: (B, thresholds), the overlap of the pixels of at least that share of the map's largest value with the
            pixels in boxes: intersection over union.
        flat: whether all values of the map are equal, as in a map of zeros.
        boxed: the share of pixels in a box.
    """

    roc_auc: Tensor
    pr_auc: Tensor
    pointing: Tensor
    iou: Tensor
    flat: Tensor
    boxed: Tensor


@torch.no_grad()
def localisation(
    maps: Tensor, inside: Tensor, thresholds: tuple[float, ...], upsampling: str = "nearest"
) -> Localisation:
    """Compares maps with boxes.

    Args:
        maps: (B, h, w), nonnegative.
        inside: bool (B, H, W), pixels of the view in any box; neither none nor all of an image.
        thresholds: for `iou`, shares of a map's largest value.
        upsampling: from patches to pixels, see `patch_removal.enlarged`.
    """
    flat = maps.flatten(1).amin(1) == maps.flatten(1).amax(1)
    pixels = enlarged(maps.double(), inside.shape[-2:], upsampling).flatten(1)
    # Scaled to [0, 1], where torchmetrics does not apply a sigmoid; equal values stay equal.
    pixels = torch.where(flat[:, None], 1, pixels / pixels.amax(1, keepdim=True))
    target, peaks = inside.flatten(1), pixels == 1
    # Images as labels and pixels as samples: one call for the batch.
    as_labels = pixels.T, target.T.long()
    images: dict[str, object] = {"num_labels": len(maps), "average": "none", "validate_args": False}
    marked = [pixels >= threshold for threshold in thresholds]
    return Localisation(
        multilabel_auroc(*as_labels, **images).double(),  # type: ignore[arg-type]
        multilabel_average_precision(*as_labels, **images).double(),  # type: ignore[arg-type]
        (peaks & target).sum(1) / peaks.sum(1),
        torch.stack([(some & target).sum(1) / (some | target).sum(1) for some in marked], 1),
        flat,
        target.double().mean(1),
    )
