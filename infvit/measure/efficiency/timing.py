"""Times in rounds: all steps take turns in each round, so that a slow moment of the machine affects all alike."""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Step = Callable[[], object]

TURN = 0.1
"""Minimum seconds of a turn: a shorter step is repeated within its turn."""


@dataclass(frozen=True)
class Spread:
    """The median over rounds, with the smallest and the largest value.

    If rounds are independent, these enclose the true median with probability 1 - 2^(1 - rounds), 98.4% for 7, whatever
    the distribution, which on a machine with other work is far from normal.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


def seconds_of(step: Step, device: torch.device | str, calls: int = 1) -> float:
    """Seconds of one step, averaged over `calls`; the device is synchronized after each."""
    _wait(device)
    start = time.perf_counter()
    for _ in range(calls):
        step()
        _wait(device)
    return (time.perf_counter() - start) / calls


def race(steps: Mapping[str, Step], rounds: int, device: torch.device | str) -> dict[str, list[float]]:
    """Seconds of each step by round, after two warm-up calls of each."""
    calls = {name: _calls(step, device) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            seconds[name].append(seconds_of(step, device, calls[name]))
    return seconds


def ratio(over: Sequence[float], under: Sequence[float]) -> Spread:
    """The ratio within each round: its median and its extremes over rounds."""
    return Spread.of([a / b for a, b in zip(over, under, strict=True)])


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float | None:
    """p of values ∝ sizes^p, the slope of the least-squares line through the logarithms; None below two sizes."""
    if len(set(sizes)) < 2:
        return None
    return statistics.linear_regression([math.log(x) for x in sizes], [math.log(y) for y in values]).slope


def _calls(step: Step, device: torch.device | str) -> int:
    step()  # compiles and warms up: its time is not a step's
    return max(1, math.ceil(TURN / seconds_of(step, device)))


def _wait(device: torch.device | str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
