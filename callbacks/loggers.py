"""Lightning's W&B logger for a server that stops answering: the run goes on offline, and its end is not held up."""

import sys
from typing import Any

import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger

from callbacks.wandb_access import SYNC

FINISH = 300.0
"""Seconds that W&B may upload after the end of a run; what is left is on the disk."""


def bounded(settings: wandb.Settings) -> wandb.Settings:
    """Settings with which a run's end waits for W&B no longer than `FINISH`, where none are there."""
    if "finish_timeout" in wandb.Settings.model_fields:  # of later versions
        settings.finish_timeout = settings.finish_timeout or FINISH
    return settings


class OfflineFallbackWandbLogger(WandbLogger):
    """Starts offline where W&B does not let it start online, and ends within `FINISH` seconds."""

    def __init__(self, *, settings: wandb.Settings, mode: str, **options: Any) -> None:
        super().__init__(settings=bounded(settings), mode=mode, **options)

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        begin = vars(WandbLogger)["experiment"].fget
        try:
            return begin(self)
        except wandb.errors.CommError as error:
            if self._wandb_init["mode"] != "online":
                raise
            self._wandb_init["mode"] = "offline"
            why = " ".join(str(error).split())[:200]
            print(f"W&B: no run was started ({why}); the run goes on offline. {SYNC}", file=sys.stderr, flush=True)
            return begin(self)
