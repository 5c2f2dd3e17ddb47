"""State that Lightning's checkpoints leave out: the mean training loss of the epoch so far and the logs' lengths."""

from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torchmetrics import MeanMetric

from callbacks.loggers import OfflineFallbackWandbLogger, ResumableCSVLogger
from infvit.run.files import print_line


class ResumeState(Callback):
    """Saves in the checkpoint, and restores, the running mean `module.train_loss` and how far each log was written.

    Without the mean, the training loss of an epoch that was interrupted would be that of its second part alone.
    """

    def __init__(self) -> None:
        self.loaded: dict[str, Any] = {"train_loss": None, "csv_rows": 0, "wandb_step": 0}

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        csv_rows, wandb_step = 0, 0
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, ResumableCSVLogger):
                csv_rows = logger.rows()
            if isinstance(logger, OfflineFallbackWandbLogger):
                wandb_step = logger.experiment.step
        loss = _train_loss(pl_module)
        sums = torch.zeros(trainer.world_size, 2, device=loss.weight.device)  # each rank fills its row
        sums[trainer.global_rank] = torch.stack([loss.mean_value, loss.weight])
        sums = cast(Tensor, trainer.strategy.reduce(sums, reduce_op="sum")).cpu()
        checkpoint["ResumeState"] = {"train_loss": sums, "csv_rows": csv_rows, "wandb_step": wandb_step}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.loaded |= checkpoint.get("ResumeState", {})
        if trainer.is_global_zero:
            print_line(f"resumes after step {checkpoint['global_step']}, from {trainer.ckpt_path}")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before training starts, since nothing is left to train of a run that was killed in its test."""
        for logger in trainer.loggers if trainer.is_global_zero else []:
            if isinstance(logger, ResumableCSVLogger):
                logger.keep_rows(self.loaded["csv_rows"])
            # Offline W&B counts steps from 0 again under the same id; online it knows its last step.
            if isinstance(logger, OfflineFallbackWandbLogger) and logger.experiment.step < self.loaded["wandb_step"]:
                logger.experiment.log({}, step=self.loaded["wandb_step"])

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Each rank restores its own sum; rank zero restores all of them if the world size has changed."""
        sums = self.loaded["train_loss"]
        if sums is None or not sums[:, 1].sum():
            return
        if len(sums) == trainer.world_size:
            total, weight = sums[trainer.global_rank]
        else:
            total, weight = sums.sum(0) * trainer.is_global_zero
        loss = _train_loss(pl_module)
        loss.update(0.0, weight=0.0)  # marks it as updated: no step of the epoch may be left
        loss.mean_value, loss.weight = total.to(loss.mean_value), weight.to(loss.weight)
        pl_module.log("train/loss_epoch", loss)


def _train_loss(module: LightningModule) -> MeanMetric:
    loss = module.train_loss
    assert isinstance(loss, MeanMetric)
    return loss
