"""Computes the scores of an evaluation from its records, with intervals: overall, by class, and differences."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array, hstack

from infvit.measure.accuracy.bootstrap import interval, resampled_sums
from infvit.measure.accuracy.real import Real
from infvit.measure.accuracy.records import Records

BINS = 15
"""Bins of the calibration error, equally wide in confidence, as in torchmetrics' MulticlassCalibrationError."""


class Score(NamedTuple):
    """A score with the ends of its 95% interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Classes:
    """Accuracy by class, an entry for each class that has images.

    Attributes:
        label, images: int arrays: the class and how many images it has.
        top1, low, high, top5: of its images, with the interval of top-1. If all images are right, or all wrong, the
            bootstrap does not vary, and the interval has no width.
    """

    label: np.ndarray
    images: np.ndarray
    top1: np.ndarray
    low: np.ndarray
    high: np.ndarray
    top5: np.ndarray


def scores(records: Records, real: Real | None = None) -> tuple[dict[str, Score], Classes]:
    """Returns "top1", "top5", "loss", "ece" and, with ReaL labels, "real_top1" and "real_top5"; and top-1 by class.

    The calibration error is Σ over bins of |Σ (correct − confidence)| / n, arXiv:1706.04599's. Resampling
    increases it, as noise increases every absolute value: its interval is shifted by the resamples' mean excess.
    """
    n, places = len(records), np.arange(len(records))
    correct, in_top5 = records.correct, records.in_top5
    bins = np.searchsorted(np.linspace(0, 1, BINS + 1, dtype=np.float32), records.confidence, side="right") - 1
    label, of_label = np.unique(records.label, return_inverse=True)

    def spread(values: np.ndarray, column: np.ndarray, columns: int) -> csr_array:
        """A matrix (n, columns) with each image's value in the given column."""
        return csr_array((values.astype(np.float64), (places, column)), shape=(n, columns))

    plain = [correct, in_top5, -records.log_prob.astype(np.float64)]
    plain += [real.labelled, real.labelled & real.top1, real.labelled & real.top5] if real else []
    blocks = [
        csr_array(np.column_stack(plain).astype(np.float64)),
        spread(correct - records.confidence.astype(np.float64), bins, BINS + 1),
        spread(np.ones(n), of_label, len(label)),
        spread(correct, of_label, len(label)),
    ]
    columns = hstack(blocks, format="csr")
    ends = np.cumsum([block.shape[1] for block in blocks])[:-1]

    def from_sums(sums: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Sums over images (..., columns) → scores (...,), top-1 by class (..., classes)."""
        total, of_bin, class_images, class_top1 = np.split(sums, ends, axis=-1)
        found = {name: total[..., i] / n for i, name in enumerate(("top1", "top5", "loss"))}
        found["ece"] = np.abs(of_bin).sum(-1) / n
        with np.errstate(invalid="ignore"):  # a resample may lack a class, or ReaL labels
            if real:
                found |= {f"real_top{k}": total[..., 3 + i] / total[..., 3] for i, k in ((1, 1), (2, 5))}
            return found, class_top1 / class_images

    value, class_value = from_sums(np.asarray(columns.sum(0)).ravel())
    samples, class_samples = from_sums(resampled_sums(columns))
    samples["ece"] = np.maximum(samples["ece"] - samples["ece"].mean() + value["ece"], 0)
    found = {name: Score(float(value[name]), *map(float, interval(samples[name]))) for name in value}
    images = np.bincount(of_label)
    low, high = interval(class_samples)
    return found, Classes(label, images, class_value, low, high, np.bincount(of_label, in_top5) / images)


def difference(records: Records, other: Records) -> tuple[Score, int]:
    """Returns top-1 of `records` minus that of `other`, and how many images they predict differently.

    Both are of the same images. Top-1 is a fraction; its interval is paired.
    """
    gained = records.correct.astype(np.float64) - other.correct
    low, high = interval(resampled_sums(csr_array(gained[:, None])) / len(records))
    score = Score(float(gained.mean()), float(low[0]), float(high[0]))
    return score, int((records.prediction != other.prediction).sum())
