"""What a measurement is given to work on. `eval.py` supplies it; the library itself reads no configuration."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lightning.pytorch import LightningDataModule, Trainer
from torch import nn

from infvit.module import Classifier


class Trained(NamedTuple):
    """A run's model with the weights of a checkpoint, the images to measure it on, and a trainer that does it.

    `row` says what is measured, as a table's row begins: ckpt, model, data, fingerprint, images. `run_dir` is the
    folder of the run that wrote the checkpoint.
    """

    module: Classifier
    data: LightningDataModule
    trainer: Trainer
    row: dict[str, Any]
    run_dir: Path


class Subjects(Protocol):
    """Models by their names in conf/model, and trained ones by their checkpoints."""

    def untrained(self, model: str, *overrides: str) -> "partial[nn.Module]":
        """A maker of the model, to be called here or in another process; `overrides` as of train.py, e.g. size=tiny."""

    def trained(self, checkpoint: str) -> Trained:
        """The model of a run's checkpoint; UsageError if it is none."""
