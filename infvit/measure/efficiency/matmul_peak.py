"""The fastest matrix product of this machine, the peak that a model's own products are compared with."""

import torch

from infvit.measure.efficiency.passes import PassSetting
from infvit.measure.efficiency.timing import Step, seconds_of

SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
LONG = 0.25
"""Seconds of a product above which no larger one is tried: the next takes a minute in float16 on a CPU."""


def matrix_product(n: int, setting: PassSetting) -> Step:
    """Returns a step: the product of two n × n matrices, 2 n³ FLOPs."""
    a, b = (torch.randn(n, n, device=torch.device(setting.device)).to(setting.dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def fastest(setting: PassSetting) -> tuple[int, float]:
    """The n whose product has the highest rate, and that rate in FLOP/s; the best of three for each."""
    rates = {}
    for n in SIZES[setting.device]:
        step = matrix_product(n, setting)
        step()
        seconds = min(seconds_of(step, setting.device) for _ in range(3))
        rates[n] = 2 * n**3 / seconds
        if seconds > LONG:
            break
    best = max(rates, key=lambda n: rates[n])
    return best, rates[best]
