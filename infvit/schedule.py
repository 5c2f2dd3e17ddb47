"""Learning rate schedules, set per step: `schedule(optimizer, warmup=steps, total=steps)` in a recipe."""

import math

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, LRScheduler, SequentialLR

from infvit.errors import expect


def warmup_cosine(optimizer: Optimizer, warmup: int, total: int, min_lr: float = 0.0) -> LRScheduler:
    """Linear from a thousandth of the learning rate in `warmup` steps, then a cosine to `min_lr` at step `total`."""
    expect(0 <= min_lr < math.inf, f"schedule.min_lr={min_lr}", "a learning rate from 0")
    cosine = HalfCosine(optimizer, T_max=max(total - warmup, 1), eta_min=min_lr)
    if not warmup:
        return cosine
    rise = LinearLR(optimizer, start_factor=1e-3, total_iters=warmup)
    return SequentialLR(optimizer, [rise, cosine], milestones=[warmup])


class HalfCosine(CosineAnnealingLR):
    """PyTorch's cosine, which is periodic, down to its minimum, where it stays."""

    def get_lr(self) -> list[float | Tensor]:
        return super().get_lr() if self.last_epoch <= self.T_max else [self.eta_min] * len(self.base_lrs)
