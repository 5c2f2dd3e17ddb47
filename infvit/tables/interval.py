"""The mean over seeds with its 95% interval."""

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from scipy.special import stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A mean over `n` seeds with the half-width of its 95% interval, in the unit of the values.

    The interval is Student's t with n - 1 degrees of freedom, t * s / sqrt(n), s the sample standard deviation. It
    assumes that seeds are independent draws of roughly normal values. One seed has no interval (None). That of two
    seeds is 3.6 times as wide as that of three with the same spread.
    """

    n: int = 0
    mean: float | None = None
    half_width: float | None = None

    @classmethod
    def of(cls, values: Iterable[float | None]) -> "Estimate":
        """Estimates from one value per seed; a seed without a finite value does not count."""
        known = [float(value) for value in values if value is not None and math.isfinite(value)]
        if not known:
            return cls()
        mean = statistics.fmean(known)
        if len(known) == 1:
            return cls(1, mean)
        half_width = _quantile(len(known)) * statistics.stdev(known, xbar=mean) / math.sqrt(len(known))
        return cls(len(known), mean, half_width)

    def record(self, key: str) -> dict[str, float | None]:
        """The estimate as raw values under flat names: the mean under `key`, its half-width and its number of seeds."""
        return {key: self.mean, f"{key}_ci95_half_width": self.half_width, f"{key}_n": self.n}

    @property
    def standard_error(self) -> float:
        """That of the mean, of an estimate of two seeds or more."""
        return (self.half_width or 0.0) / _quantile(self.n)

    @property
    def low(self) -> float | None:
        """The lower end of the interval."""
        return None if self.mean is None or self.half_width is None else self.mean - self.half_width

    @property
    def high(self) -> float | None:
        """The upper end of the interval."""
        return None if self.mean is None or self.half_width is None else self.mean + self.half_width


def _quantile(n: int) -> float:
    """Student's t with n − 1 degrees of freedom at the upper end of the interval."""
    return float(stdtrit(n - 1, (1 + CONFIDENCE) / 2))
