"""The difference of two configurations, seed by seed."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

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
    top1: Estimate
    log_speed: Estimate

    @classmethod
    def of(cls, baseline: str, ours: Sequence[Result], theirs: Sequence[Result]) -> "Paired":
        """Pairs runs by seed, one for each seed; a pair without the number, or timed differently, is left out."""
        by_seed = {run.seed: run for run in theirs}
        pairs = [(run, by_seed[run.seed]) for run in ours if run.seed in by_seed]
        return cls(
            baseline,
            Estimate.of(_difference(run, base) for run, base in pairs),
            Estimate.of(_log_ratio(run, base) for run, base in pairs),
        )

    @property
    def speed(self) -> tuple[float | None, float | None, float | None]:
        """The ratio of images/s, a geometric mean over seeds, and the two ends of its 95% interval."""
        return _exp(self.log_speed.mean), _exp(self.log_speed.low), _exp(self.log_speed.high)


NOT_PAIRED = Paired("", Estimate(), Estimate())


def _difference(run: Result, base: Result) -> float | None:
    ours, theirs = run.metrics.get("test/top1"), base.metrics.get("test/top1")
    return None if ours is None or theirs is None else ours - theirs


def _log_ratio(run: Result, base: Result) -> float | None:
    ours, theirs = run.train_images_per_second, base.train_images_per_second
    same = all(getattr(run, name) == getattr(base, name) for name in SAME_SPEED)
    same = same and run.settings.get("compile") == base.settings.get("compile")
    return math.log(ours / theirs) if ours and theirs and same else None


def _exp(x: float | None) -> float | None:
    return None if x is None else math.exp(x)
