"""Randomness that depends on (seed, epoch, rank) alone, so that a resumed run draws what the whole one would have."""

import random

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class EpochSeed(Callback):
    """Seeds Python, numpy and torch at the start of every training epoch.

    Dropout, stochastic depth, Mixup and device-side augmentation then do not depend on how many random numbers the
    epochs before consumed: stopping at an epoch's end and resuming changes nothing. Each rank draws its own.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        entropy = np.random.SeedSequence((self.seed, trainer.current_epoch, trainer.global_rank))
        draw = int(entropy.generate_state(1)[0])
        random.seed(draw)
        np.random.seed(draw)  # timm's Mixup draws from numpy's global generator
        torch.manual_seed(draw)
