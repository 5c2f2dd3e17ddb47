"""95% intervals of what is measured on a set of images: the images drawn anew, with replacement."""

import numpy as np
from scipy.sparse import csr_array

from infvit.tables.interval import CONFIDENCE

RESAMPLES = 1000
SEED = 0
METHOD = f"95% intervals: percentiles over {RESAMPLES:,} bootstrap resamples of the images, seed {SEED}."

_AT_ONCE = 2**20
"""Drawn indices in memory at a time: 25 MB with their counts."""


def resampled_sums(columns: csr_array) -> np.ndarray:
    """The sums over images of each column, in every resample: (n, m) → (RESAMPLES, m) float64.

    A resample is n draws of `default_rng(SEED).integers(n)`, one resample after the other: sets of equally many images
    are resampled alike, so that the difference of two models is that on the same draws.
    """
    n = columns.shape[0]
    rng = np.random.default_rng(SEED)
    size = max(_AT_ONCE // n, 1)
    sums = []
    for start in range(0, RESAMPLES, size):
        rows = min(size, RESAMPLES - start)
        drawn = rng.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        sums.append(counts.astype(np.float64) @ columns)
    return np.concatenate(sums)


def interval(samples: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Its two ends, the percentiles over (RESAMPLES, ...); resamples without a value (NaN) do not count."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(samples, [tail, 100 - tail], axis=0)
    return low, high
