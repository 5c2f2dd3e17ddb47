"""Counter-based random numbers: a key and a counter give the number, whatever the order, batch, thread and process.

Every image has a key for each time it is seen, made of (seed, epoch, image, repeat). Its crop and flip on the CPU and
its augmentation on the device are drawn from its key alone. The numbers are those of SplitMix64 (Steele, Lea, Flood:
"Fast splittable pseudorandom number generators", OOPSLA 2014), started at the key.
"""

import math

import torch
from torch import Tensor

CROP, FLIP, OPERATIONS, RECTANGLES, NOISE = (stream << 32 for stream in range(5))
"""The first counter of each purpose: no two purposes share a number."""

_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST = 0xBF58476D1CE4E5B9 - 2**64
_SECOND = 0x94D049BB133111EB - 2**64


def sample_keys(seed: int, epoch: int, images: Tensor, repeats: Tensor) -> Tensor:
    """Returns the keys (n,) int64 of `images` (n,) in an epoch, seen for the `repeats`-th (n,) time."""
    key = _mix(torch.tensor(seed) + _GAMMA)
    for part in (torch.tensor(epoch), repeats, images):
        key = _mix((key ^ part) + _GAMMA)
    return key


def uniforms(keys: Tensor, start: int, count: int) -> Tensor:
    """Returns numbers in [0, 1), multiples of 2^-24: (count, n) float32 for keys (n,), from counter `start` on."""
    counters = torch.arange(start, start + count, device=keys.device)
    return _unit(_mix(advance(keys, counters.view(-1, 1))))


def normals(keys: Tensor, counters: Tensor) -> Tensor:
    """Returns standard normal numbers, float32, of the shape of keys + counters (Box and Muller's method)."""
    bits = _mix(advance(keys, counters))
    radius = (1 - _unit(bits)).log_().mul_(-2).sqrt_()
    return radius.mul_(((bits & 0xFFFFFF).float() * (2 * math.pi / 2**24)).cos_())


def advance(keys: Tensor, counters: Tensor) -> Tensor:
    """Returns the keys whose counter 0 is the counter `counters` of `keys`."""
    return keys + counters * _GAMMA


def _unit(bits: Tensor) -> Tensor:
    return ((bits >> 40) & 0xFFFFFF).float().mul_(2**-24)


def _mix(x: Tensor) -> Tensor:
    # Shifts of int64 copy the sign bit; the masks clear it.
    x = (x ^ ((x >> 30) & (2**34 - 1))) * _FIRST
    x = (x ^ ((x >> 27) & (2**37 - 1))) * _SECOND
    return x ^ ((x >> 31) & (2**33 - 1))
