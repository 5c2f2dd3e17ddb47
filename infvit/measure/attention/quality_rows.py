"""The attention measurement of one run as flat rows: means over images with their 95% intervals."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from infvit.measure.attention.health import Health
from infvit.measure.attention.localisation import THRESHOLDS
from infvit.measure.attention.outputs import Outputs
from infvit.measure.attention.patch_removal import areas
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


def map_row(scores: Mapping[str, Tensor], at: Sequence[float]) -> dict[str, Any]:
    """The quality of one method's maps, fractions; None for what was not measured.

    `best_threshold` is the one with the largest mean overlap over the images, not each image's own best; `guess` is
    the share of pixels in boxes, which is what `pr_auc`, `pointing` and the overlaps of a map of equal values are.

    Args:
        scores: of each image: "zero" (whether the map is 0), the fields of `Faithfulness`, and those of `Localisation`
            if maps were compared with boxes.
        at: the shares of removed patches.
    """
    morf_aoc, lerf_auc = areas(scores["kept"], at)
    further: dict[str, Any] = dict.fromkeys(("best_threshold", "guess", "boxed_images", "flat_maps"))
    if "iou" in scores:
        overlap = scores["iou"]
        best = int(overlap[:, :-1].mean(0).argmax())
        scores = {**scores, "iou_best": overlap[:, best], "iou_fixed": overlap[:, -1]}
        further = {
            "best_threshold": THRESHOLDS[best],
            "guess": float(scores["boxed"].mean()),
            "boxed_images": len(overlap),
            "flat_maps": int(scores["flat"].sum()),
        }
    row = with_interval("morf_aoc", morf_aoc) | with_interval("lerf_auc", lerf_auc)
    for name in LOCALISATION:
        row |= with_interval(name, scores.get(name))
    return row | further | {"zero_maps": int(scores["zero"].sum())}


def curve_rows(scores: Mapping[str, Tensor], at: Sequence[float]) -> Rows:
    """The curves of both orders: for each share removed, the probability kept and the accuracy, means over images."""
    return [
        {"order": order, "share": round(share, 6)}
        | with_interval("kept", scores["kept"][:, k, i])
        | {"accuracy": float(scores["correct"][:, k, i].double().mean())}
        for k, order in enumerate(("MoRF", "LeRF"))
        for i, share in enumerate(at)
    ]


def layer_rows(found: Sequence[Health], outputs: Sequence[Outputs]) -> Rows:
    """The health of all heads, of a block's heads together, and of every block and head: means over images.

    A mean over heads is taken within an image first. `_spread` is the standard deviation over images, and `images` of
    a figure the number in which it exists: a head that is off has only `off` and `gamma`, and only heads together have
    the figures of `Outputs`. `found` is empty for a model whose heads have no weights.
    """
    of_blocks = _all_images(Outputs, outputs)
    depth = len(of_blocks["effective_rank"])
    values = _all_images(Health, found) or {f.name: torch.empty(depth, 0, 1) for f in fields(Health)}
    heads = values["off"].shape[1]
    every = slice(None)
    places = [("all", "all", every, every)]
    places += [(str(i), "all", slice(i, i + 1), every) for i in range(depth)]
    places += [(str(i), str(h), slice(i, i + 1), slice(h, h + 1)) for i in range(depth) for h in range(heads)]
    rows: Rows = []
    for block, head, blocks, of_block in places:
        row: dict[str, Any] = {"block": block, "head": head}
        parts = {name: figures[blocks, of_block] for name, figures in values.items()}
        parts |= {name: figures[blocks] if head == "all" else figures[:0] for name, figures in of_blocks.items()}
        for name, part in parts.items():
            over_heads = part.flatten(0, -2).nanmean(0)
            known = over_heads[~over_heads.isnan()]
            row |= with_interval(name, known)
            row |= {f"{name}_spread": float(known.std()) if len(known) > 1 else None, f"{name}_images": len(known)}
        rows.append(row)
    return rows


def _all_images(kind: type, parts: Sequence[Any]) -> dict[str, Tensor]:
    """The figures of all batches, (..., images); {} without any."""
    names = [f.name for f in fields(kind)] if parts else []
    return {name: torch.cat([getattr(part, name) for part in parts], -1).double() for name in names}


def with_interval(name: str, values: Tensor | None) -> dict[str, Any]:
    """The mean over images under `name`, and the half-width of its interval."""
    estimate = Estimate.of([] if values is None else values.tolist())
    return {name: estimate.mean, f"{name}_ci95_half_width": estimate.half_width}


def over_seeds(rows: Rows, figure: str) -> Estimate:
    """The mean over seeds with its interval; of one seed, the mean over images with theirs."""
    if len(rows) > 1 or rows[0][figure] is None:
        return Estimate.of(row[figure] for row in rows)
    return Estimate(1, rows[0][figure], rows[0].get(f"{figure}_ci95_half_width"))


def grouped(rows: Rows, *keys: str) -> dict[tuple[Any, ...], Rows]:
    """The rows of each combination of values of the keys, in the order of their first rows."""
    found: dict[tuple[Any, ...], Rows] = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found
