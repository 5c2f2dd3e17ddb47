"""Random numbers that depend on seed, epoch, step and rank alone: a resumed run draws those of an uninterrupted one."""

import random

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Seeds Python, NumPy and torch at the start of every training epoch and after every batch, each rank differently.

    Dropout, stochastic depth, Mixup and augmentation on the device then do not depend on how many random numbers were
    drawn before. So a resumed run equals an uninterrupted one, and with the same seed all models see the same images,
    however many numbers they draw themselves. Batches that are accumulated into one step have different seeds.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Seeds a run that resumes within an epoch, where `on_train_epoch_start` is not called."""
        done = trainer.fit_loop.epoch_loop.batch_progress.current.completed
        self._seed(trainer, *([trainer.global_step] if done else []))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._seed(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: object, batch: object, batch_idx: int
    ) -> None:
        """Seeds the next batch, by its number within the step unless it is the first, where a run may resume."""
        within_step = (batch_idx + 1) % trainer.accumulate_grad_batches
        self._seed(trainer, trainer.global_step, *[within_step] * bool(within_step))

    def _seed(self, trainer: Trainer, *position: int) -> None:
        entropy = np.random.SeedSequence((self.seed, trainer.current_epoch, trainer.global_rank, *position))
        draw = int(entropy.generate_state(1)[0])
        random.seed(draw)
        np.random.seed(draw)  # timm's Mixup draws from numpy's global generator
        if trainer.strategy.root_device.type == "cpu":
            torch.default_generator.manual_seed(draw)
        else:
            torch.manual_seed(draw)  # before CUDA is initialized it stores a stack trace: 0.8 ms on the CPU
