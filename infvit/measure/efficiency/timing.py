"""Times in rounds: all contestants take turns in each, so that a slow moment of the machine hits all alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Step = Callable[[], object]

TURN = 0.1
"""Seconds that a turn takes at least: a shorter step is repeated within its turn."""


@dataclass(frozen=True)
class Spread:
    """The median over rounds between the smallest and the largest.

    Were rounds independent, these would enclose the true median with probability 1 - 2^(1 - rounds): 98.4% for 7. That
    asks nothing of the distribution, which on a machine with other work is far from normal.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


def seconds_of(step: Step, device: torch.device | str, calls: int = 1) -> float:
    """Seconds of one step, the device's work included; the mean of `calls`, each waited for."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
        _wait(device)
    return (time.perf_counter() - start) / calls


def race(contestants: Mapping[str, Step], rounds: int, device: torch.device | str) -> dict[str, list[float]]:
    """Seconds of one step of each contestant, per round, after two steps that do not count."""
    calls = {name: _calls(step, device) for name, step in contestants.items()}
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, step in contestants.items():
            seconds[name].append(seconds_of(step, device, calls[name]))
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratio within each round: its median and its extremes over rounds."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """p of values ∝ sizes^p: the slope of the least-squares line through the logarithms; None below two sizes."""
    if len(set(sizes)) < 2:
        return None
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


def _calls(step: Step, device: torch.device | str) -> int:
    step()  # cold, and the one that compiles: it does not tell how long a step is
    return max(1, math.ceil(TURN / seconds_of(step, device)))


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
