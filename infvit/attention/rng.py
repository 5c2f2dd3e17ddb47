"""Random numbers that do not advance torch's global generator.

Models with equal seeds start from equal shared weights. An operator that drew its own parameters from the global
generator would shift every later draw.
"""

import hashlib

import torch
from torch import Tensor


def derived_seed() -> int:
    """A seed computed from the state of torch's global generator, which it does not advance."""
    digest = hashlib.sha256(torch.get_rng_state().numpy().tobytes()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def independent_normal(*shape: int, std: float) -> Tensor:
    """Normal numbers with mean 0 on the default device, drawn on the CPU and therefore equal on every device."""
    return (torch.randn(*shape, generator=_generator(), device="cpu") * std).to(torch.get_default_device())


def independent_uniform(*shape: int, low: float, high: float) -> Tensor:
    """Uniform numbers, drawn as `independent_normal`."""
    drawn = torch.rand(*shape, generator=_generator(), device="cpu")
    return (low + (high - low) * drawn).to(torch.get_default_device())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(derived_seed())
