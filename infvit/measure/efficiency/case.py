"""The results of the efficiency measurement: cases (a model at a resolution in one pass) and what follows from them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from infvit.measure.efficiency.passes import PassSetting
from infvit.measure.efficiency.timing import Spread, exponent, ratio
from infvit.measure.subprocess_case import DONE

BASELINES = {"vit": "softmax through the fused kernel", "vit_unfused": "softmax that holds its N × N matrix"}
"""Speed-ups are over both: one over the second alone would flatter."""

PRODUCT = "(matrix product)"


@dataclass
class Case:
    """Counts are for one image, memory and times for a pass of the batch.

    Attributes:
        kind: "forward" or "training".
        tokens: of an image; None if the model's patches have no single size.
        flops: of this pass (forward, or forward and backward), 2 per multiply-add; macs is half of it. None: unknown.
        status, note: as in `CaseOutcome`.
        peak_bytes: peak resident memory of its process, or peak memory of the tensors on the GPU.
        added_bytes: the part of it that came with the model, without the libraries.
        seconds: of a pass, by round.
        peak_flops_per_second: of the machine's fastest matrix product, by round.
        joules: of a pass, by reading.
    """

    model: str
    resolution: int
    kind: str
    tokens: int | None
    parameters: int
    macs: int | None
    flops: int | None
    batch_size: int = 1
    status: str = ""
    note: str = ""
    peak_bytes: int | None = None
    added_bytes: int | None = None
    seconds: list[float] = field(default_factory=list)
    peak_flops_per_second: list[float] = field(default_factory=list)
    joules: list[float] = field(default_factory=list)

    @property
    def time(self) -> Spread | None:
        """Seconds of a pass; None if it was not timed."""
        return Spread.of(self.seconds) if self.status == DONE and self.seconds else None

    @property
    def images_per_second(self) -> Spread | None:
        return self._rate(self.batch_size)

    @property
    def flops_per_second(self) -> Spread | None:
        """FLOPs of matrix products over the time of the whole pass."""
        return None if self.flops is None else self._rate(self.flops * self.batch_size)

    @property
    def share_of_peak(self) -> Spread | None:
        """FLOP/s over those of the fastest matrix product in the same round."""
        if self.flops is None or not self.time:
            return None
        return ratio([self.flops * self.batch_size / s for s in self.seconds], self.peak_flops_per_second)

    @property
    def joules_per_image(self) -> Spread | None:
        return Spread.of([j / self.batch_size for j in self.joules]) if self.joules else None

    def _rate(self, amount: float) -> Spread | None:
        time = self.time
        return Spread(amount / time.median, amount / time.high, amount / time.low) if time else None

    def faster_than(self, other: "Case | None") -> Spread | None:
        """How many times as fast as the other case: the ratio of times within each round."""
        return ratio(other.seconds, self.seconds) if other and other.time and self.time else None

    def baselines(self, cases: Sequence["Case"]) -> dict[str, "Case | None"]:
        """The softmax cases of the same pass and resolution."""
        same = {c.model: c for c in cases if (c.kind, c.resolution) == (self.kind, self.resolution)}
        return {name: same.get(name) for name in BASELINES}

    def row(self, cases: Sequence["Case"]) -> dict[str, Any]:
        """A flat dict: medians over the rounds, with the extremes under `_low` and `_high`."""
        row = {"pass" if name == "kind" else name: v for name, v in vars(self).items() if not isinstance(v, list)}
        rates = ("images_per_second", "flops_per_second", "share_of_peak", "joules_per_image")
        spreads: dict[str, Spread | None] = {"seconds": self.time} | {name: getattr(self, name) for name in rates}
        spreads |= {f"times_as_fast_as_{n}": self.faster_than(c) for n, c in self.baselines(cases).items()}
        for name, spread in spreads.items():
            row[name] = spread and spread.median
            row[f"{name}_low"], row[f"{name}_high"] = (spread and spread.low, spread and spread.high)
        return row


@dataclass
class Efficiency:
    """The whole measurement, as stored in `efficiency.json`.

    Attributes:
        size: of all models, "large4 size.depth=12".
        setting: how every pass runs.
        time_limit: seconds for a case in its own process.
        product: side of the square matrices whose product is the fastest here.
        energy: what the joules cover, or why there are none.
    """

    size: str
    setting: PassSetting
    rounds: int
    time_limit: float
    threads: int
    float32_matmul_precision: str
    product: int
    energy: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    command: str
    cases: list[Case] = field(default_factory=list)


def exponents(cases: Sequence[Case], kind: str) -> dict[str, float]:
    """p of time ∝ tokens^p by model, over the resolutions at which it was timed; of pixels if it has no tokens."""
    found = {}
    for model in dict.fromkeys(case.model for case in cases):
        timed = [c for c in cases if c.model == model and c.kind == kind and c.time]
        p = exponent([c.tokens or c.resolution**2 for c in timed], [c.time.median for c in timed if c.time])
        if p is not None:
            found[model] = p
    return found
