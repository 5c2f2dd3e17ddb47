"""Bootstrap 95% intervals over the images of a set."""

import numpy as np
from scipy.sparse import csr_array

from infvit.tables.interval import CONFIDENCE

RESAMPLES = 1000
SEED = 0
METHOD = f"95% intervals: percentiles over {RESAMPLES:,} bootstrap resamples of the images, seed {SEED}."

_AT_ONCE = 2**20
"""Number of drawn indices in memory at a time, 25 MB with their counts."""


def resampled_sums(columns: csr_array) -> np.ndarray:
    """Sums of each column over the images of every resample: (n, m) → (RESAMPLES, m) float64.

    A resample is n draws of `default_rng(SEED).integers(n)`, one resample after the other. Sets of equally many images
    get the same draws, so the difference of two models is paired.
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
    """Returns the interval's ends, percentiles over (RESAMPLES, ...); resamples without a value (NaN) are ignored."""
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.nanpercentile(samples, [tail, 100 - tail], axis=0)
    return low, high
