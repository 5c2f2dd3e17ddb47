"""The fastest matrix product of this machine: what a model's own products can be compared with."""

import torch

from infvit.measure.efficiency.passes import Setting
from infvit.measure.efficiency.timing import Step, seconds_of

SIZES = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
LONG = 0.25
"""Seconds of a product above which a larger one is not tried: float16 on a CPU takes a minute for the next."""


def product(n: int, setting: Setting) -> Step:
    """A product of two n × n matrices: 2 n³ FLOPs."""
    a, b = (torch.randn(n, n, device=torch.device(setting.device)).to(setting.dtype) for _ in range(2))
    out = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=out)


def fastest(setting: Setting) -> tuple[int, float]:
    """The n whose product has the highest rate, and that rate in FLOP/s; the best of three for each."""
    rates = {}
    for n in SIZES[setting.device]:
        step = product(n, setting)
        step()
        seconds = min(seconds_of(step, setting.device) for _ in range(3))
        rates[n] = 2 * n**3 / seconds
        if seconds > LONG:
            break
    best = max(rates, key=lambda n: rates[n])
    return best, rates[best]
