"""The difference of two configurations, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from infvit.run.result import Result
from infvit.tables.interval import Estimate

SAME_SPEED = ("hardware", "loader", "precision", "batch_size")
"""Fields that two runs must share for the ratio of their speeds to be that of their models."""


@dataclass(frozen=True)
class Paired:
    """A configuration minus its baseline over the seeds that both have finished.

    One seed gives both the same data order and the same initialisation of what they share, so most of the spread over
    seeds is in both and cancels. `top1` is the mean difference of the fractions, with Student's interval over the n
    differences. `log_speed` is the mean of log(images/s / images/s of the baseline), likewise: the logarithm makes
    twice and half as fast equally far from 1.
    """

    baseline: str
    top1: Estimate = field(default_factory=Estimate)
    log_speed: Estimate = field(default_factory=Estimate)

    @classmethod
    def of(cls, baseline: str, ours: Sequence[Result], theirs: Sequence[Result]) -> Paired:
        """Pairs runs by seed, one for each seed; a pair without the number, or timed differently, is left out."""
        by_seed = {run.seed: run for run in theirs}
        pairs = [(run, by_seed[run.seed]) for run in ours if run.seed in by_seed]
        return cls(
            baseline,
            Estimate.of(_minus(a.metrics.get("test/top1"), b.metrics.get("test/top1")) for a, b in pairs),
            Estimate.of(_log_ratio(a, b) for a, b in pairs),
        )

    @property
    def speed(self) -> tuple[float | None, float | None, float | None]:
        """The ratio of images/s, a geometric mean over seeds, and the two ends of its 95% interval."""
        return _exp(self.log_speed.mean), _exp(self.log_speed.low), _exp(self.log_speed.high)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _log_ratio(run: Result, base: Result) -> float | None:
    ours, theirs = run.train_images_per_second, base.train_images_per_second
    differs = any(getattr(run, name) != getattr(base, name) for name in SAME_SPEED)
    if not ours or not theirs or differs or run.settings.get("compile") != base.settings.get("compile"):
        return None
    return math.log(ours / theirs)


def _exp(x: float | None) -> float | None:
    # The interval of two seeds far apart exceeds the largest float.
    return None if x is None else math.exp(min(max(x, -700.0), 700.0))
