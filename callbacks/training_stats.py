"""Training speed, gradient norm and gamma."""

import math
import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.nn.utils import get_total_norm

from infvit.sharding import full_tensor


class TrainingStats(Callback):
    """Logs `images_per_second`, `grad_norm` (before clipping) and `gamma/block.head`.

    The speed is that of all devices together, from the end of an epoch's first step, without compilation, the filling
    of queues, validation and checkpoints.
    """

    def __init__(self) -> None:
        self.images = 0
        self.seconds = 0.0
        self.start: float | None = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # A GPU runs asynchronously: it finishes the steps that are counted before a validation starts.
        validates = trainer.is_last_batch or (batch_idx + 1) % (trainer.val_check_batch or math.inf) == 0
        if validates and pl_module.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.perf_counter()
        if batch_idx == 0 or self.start is None:  # a run may resume within an epoch
            self.images, self.seconds = 0, 0.0
        else:
            self.images += len(batch[0]) * trainer.world_size
            self.seconds += now - self.start
        self.start = now

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.start is not None:
            self.start = time.perf_counter()

    def exclude(self, seconds: float) -> None:
        """Excludes time between two steps that another callback has used."""
        if self.start is not None:
            self.start += seconds

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if (trainer.global_step + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]  # a row follows
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            pl_module.log("grad_norm", full_tensor(get_total_norm(gradients)))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.images:
            pl_module.log("images_per_second", self.images / self.seconds)
        named = {f"gamma/{i}.{h}": g for i, heads in enumerate(gammas(pl_module)) for h, g in enumerate(heads)}
        step = trainer.global_step - 1  # as Lightning's own at the end of an epoch
        for logger in trainer.loggers if named else []:  # `self.log` takes as long for each value as this for all
            logger.log_metrics({"epoch": trainer.current_epoch, **named}, step)


def gammas(module: LightningModule) -> list[list[float]]:
    """The discount of every head in every block that has one; collective if the module is sharded."""
    discounts = [getattr(layer, "discounts", None) for layer in module.modules()]
    return [full_tensor(gamma.detach()).tolist() for gamma in discounts if gamma is not None]
