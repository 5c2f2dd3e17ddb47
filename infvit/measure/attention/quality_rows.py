"""The attention measurement of one run as flat rows: means over images with their 95% intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from infvit.measure.attention.health import Health
from infvit.measure.attention.localisation import THRESHOLDS, Localisation
from infvit.measure.attention.patch_removal import Faithfulness, lerf_auc, morf_aoc
from infvit.tables.interval import Estimate

Rows = list[dict[str, Any]]

REMOVAL = {"morf_aoc": "MoRF-AOC", "lerf_auc": "LeRF-AUC"}
LOCALISATION = {
    "roc_auc": "ROC-AUC",
    "pr_auc": "PR-AUC",
    "pointing": "pointing",
    "iou_best": "IoU best",
    "iou_fixed": "IoU fixed",
}


def map_row(
    first: Mapping[str, Any], removed: Faithfulness, located: Localisation | None, at: Sequence[float], zeros: int
) -> dict[str, Any]:
    """The quality of one method's maps, fractions; None for what was not measured.

    `best_threshold` is the one with the largest mean overlap over the images, not each image's own best; `guess` is
    the share of pixels in boxes, which is what `pr_auc`, `pointing` and the overlaps of a map of equal values are.
    """
    values: dict[str, Tensor | None] = {"morf_aoc": morf_aoc(removed, at), "lerf_auc": lerf_auc(removed, at)}
    values |= dict.fromkeys(LOCALISATION)
    further: dict[str, Any] = dict.fromkeys(("best_threshold", "guess", "boxed_images", "flat_maps"))
    if located is not None:
        best = int(located.iou[:, :-1].mean(0).argmax())
        values |= {"roc_auc": located.roc_auc, "pr_auc": located.pr_auc, "pointing": located.pointing}
        values |= {"iou_best": located.iou[:, best], "iou_fixed": located.iou[:, -1]}
        further = {
            "best_threshold": THRESHOLDS[best],
            "guess": float(located.boxed.mean()),
            "boxed_images": len(located.boxed),
            "flat_maps": int(located.flat.sum()),
        }
    row = dict(first)
    for name, figures in values.items():
        row |= _with_interval(name, figures)
    return row | further | {"zero_maps": zeros}


def curve_rows(first: Mapping[str, Any], removed: Faithfulness, at: Sequence[float]) -> Rows:
    """The curves of both orders: for each share removed, the probability kept and the accuracy, means over images."""
    rows: Rows = []
    for order, curves in zip(("MoRF", "LeRF"), removed, strict=True):
        for i, share in enumerate(at):
            row = dict(first) | {"order": order, "share": round(share, 6)}
            row |= _with_interval("kept", curves.kept[:, i])
            rows.append(row | {"accuracy": float(curves.correct[:, i].double().mean())})
    return rows


def layer_rows(first: Mapping[str, Any], when: str, found: Sequence[Health]) -> Rows:
    """The health of every block and head, of a block's heads together, and of all: means over images.

    A mean over heads is taken within an image first. `_spread` is the standard deviation over images, and `images` of
    a figure the number in which it exists: a head that is off has only `off` and `gamma`.

    Args:
        first: the values that every row begins with.
        when: "start" or "trained".
        found: one for each batch.
    """
    rows: Rows = []
    values = {f.name: torch.cat([getattr(part, f.name) for part in found], -1).double() for f in fields(Health)}
    depth, heads, _ = values["off"].shape
    every = slice(None)
    blocks = {"all": every} | {str(i): slice(i, i + 1) for i in range(depth)}
    places = [(block, "all", blocks[block], every) for block in blocks]
    places += [(str(i), str(h), blocks[str(i)], slice(h, h + 1)) for i in range(depth) for h in range(heads)]
    for block, head, at_block, at_head in places:
        row = dict(first) | {"when": when, "block": block, "head": head}
        for name, figures in values.items():
            row |= _over_images(name, figures[at_block, at_head].flatten(0, 1).nanmean(0))
        rows.append(row)
    return rows


def _over_images(name: str, values: Tensor) -> dict[str, float | None]:
    known = values[~values.isnan()]
    row = _with_interval(name, known)
    spread = float(known.std()) if len(known) > 1 else None
    return row | {f"{name}_spread": spread, f"{name}_images": len(known)}


def _with_interval(name: str, values: Tensor | None) -> dict[str, float | None]:
    estimate = Estimate() if values is None else Estimate.of(values.tolist())
    return {name: estimate.mean, f"{name}_ci95_half_width": estimate.half_width}
