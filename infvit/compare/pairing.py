"""What a row gains or loses against a baseline, seed by seed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infvit.errors import UsageError
from infvit.run.result import CONFIG_FIELDS, Result
from infvit.tables.interval import Estimate

if TYPE_CHECKING:
    from infvit.compare.table import Row

BASELINE = "vit"
# What two runs must share for the ratio of their speeds to say something about their models.
SAME_SPEED = ("hardware", "loader", "precision", "batch_size")


@dataclass(frozen=True)
class Paired:
    """A row minus its baseline over the seeds that both have finished.

    One seed gives both the same data order and the same start of what they share, so most of the spread over seeds
    is in both and leaves the difference. `top1` is the mean difference of the fractions, with Student's interval over
    the n differences. `log_speed` is the mean of log(images/s of the row / images/s of the baseline), likewise: a
    ratio is symmetric there (twice and half as fast lie equally far from 1).
    """

    baseline: str
    top1: Estimate
    log_speed: Estimate

    @classmethod
    def of(cls, row: Row, baseline: Row) -> Paired:
        """Pair the counted runs of both rows by seed; one without the number, or timed elsewhere, is left out.

        A baseline has no difference to itself.
        """
        if row is baseline:
            return cls(row.name, Estimate(), Estimate())
        theirs = {run.seed: run for run in baseline.counted}
        pairs = [(run, theirs[run.seed]) for run in row.counted if run.seed in theirs]
        return cls(
            baseline.name,
            Estimate.of(_minus(a.metrics.get("test/top1"), b.metrics.get("test/top1")) for a, b in pairs),
            Estimate.of(_log_ratio(a, b) for a, b in pairs),
        )

    @property
    def speed(self) -> tuple[float | None, float | None, float | None]:
        """The ratio of images/s and the two ends of its 95% interval: the geometric mean over seeds."""
        return _exp(self.log_speed.mean), _exp(self.log_speed.low), _exp(self.log_speed.high)


def baseline_of(row: Row, rows: Sequence[Row], name: str) -> Row | None:
    """The row that `row` is held against: of the model named so, or else the row named so, and comparable with it.

    A row may be called as its model is, without being the baseline of the model's variants: of several rows it is the
    one that shares most of the configuration, so that softmax with faint positions is the baseline of InfSA with faint
    positions; of equals the one without overrides.
    """
    named = [other for other in rows if other.config.model == name] or [other for other in rows if other.name == name]
    candidates = [other for other in named if other.counted and other.config.signature == row.config.signature]
    return max(
        candidates, key=lambda other: (other is row, _shared(row, other), not other.config.variant), default=None
    )


def chosen(rows: Sequence[Row], name: str | None) -> str:
    """The baseline's name: as asked for, which must exist (`UsageError`), or `BASELINE`."""
    if name is None:
        return BASELINE
    if not any(name in (row.name, row.config.model) for row in rows):
        known = sorted({row.name for row in rows} | {row.config.model for row in rows})
        raise UsageError(f"no row or model named {name} to compare with; there are: {', '.join(known) or 'none'}")
    return name


def _shared(row: Row, other: Row) -> int:
    return sum(getattr(row.config, name) == getattr(other.config, name) for name in CONFIG_FIELDS)


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _log_ratio(run: Result, base: Result) -> float | None:
    ours, theirs = run.train_images_per_second, base.train_images_per_second
    elsewhere = any(getattr(run, name) != getattr(base, name) for name in SAME_SPEED)
    if not ours or not theirs or elsewhere or run.settings.get("compile") != base.settings.get("compile"):
        return None
    return math.log(ours / theirs)


def _exp(x: float | None) -> float | None:
    # Two seeds far apart have an interval that no float holds.
    return None if x is None else math.exp(min(max(x, -700.0), 700.0))
