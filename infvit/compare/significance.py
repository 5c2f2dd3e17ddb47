"""What paired differences decide: Student's test, equivalence, Holm's correction, and the seeds that a test needs."""

import math
from collections.abc import Sequence

from scipy.special import nctdtr, ndtri, stdtr, stdtrit

from infvit.tables.interval import CONFIDENCE, Estimate

LEVEL = 1 - CONFIDENCE
POWER = 0.8


def p_different(difference: Estimate) -> float:
    """The two-sided p-value of the t test that the mean difference is 0; the estimate has two seeds or more."""
    return 2 * float(stdtr(difference.n - 1, -abs(_in_errors(difference.mean or 0.0, difference))))


def p_equivalent(difference: Estimate, margin: float) -> float:
    """The p-value of two one-sided t tests (TOST) that the mean difference is `margin` or more, in either direction.

    Below 0.05 exactly where the 90% interval is within ± margin (Schuirmann, 1987). Of the two tests the larger p-value
    counts, which is that of the nearer margin.
    """
    return float(stdtr(difference.n - 1, _in_errors(abs(difference.mean or 0.0) - margin, difference)))


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected for being several, by Holm's step-down method (1979), in the order given."""
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected


def seeds_needed(difference: Estimate, true: float) -> int:
    """The seeds with which a paired t test finds a difference of `true` with probability `POWER` at `LEVEL`.

    The standard deviation of the differences is the one seen; the power is that of the noncentral t distribution.
    """
    deviation = difference.standard_error * math.sqrt(difference.n)
    if not deviation:
        return 2
    # The normal approximation is a lower bound.
    n = max(2, math.floor((float(ndtri(1 - LEVEL / 2) + ndtri(POWER)) * deviation / true) ** 2))
    while nctdtr(n - 1, math.sqrt(n) * true / deviation, stdtrit(n - 1, 1 - LEVEL / 2)) > 1 - POWER:
        n += 1
    return n


def _in_errors(x: float, estimate: Estimate) -> float:
    """x in standard errors of the estimate; seeds that agree exactly have none."""
    error = estimate.standard_error
    return x / error if error else math.copysign(math.inf, x) if x else 0.0
