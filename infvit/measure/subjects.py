"""What a measurement is given to work on. `eval.py` supplies it; the library itself reads no configuration."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lightning.pytorch import LightningDataModule, Trainer
from PIL.Image import Image
from torch import Tensor, nn

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


class Network(NamedTuple):
    """A run's model with the weights of a checkpoint, and how it takes an image; the run's data are not needed.

    Attributes:
        model: in evaluation mode.
        classes: their names, in order; those of ImageNet are synsets.
        mean, std: of the channels on the scale [0, 1].
        view: a PIL image → uint8 (3, h, w), by the exact pipeline of evaluation.
        name: the model's in conf/model.
    """

    model: nn.Module
    classes: list[str]
    mean: Sequence[float]
    std: Sequence[float]
    view: Callable[[Image], Tensor]
    name: str


class Subjects(Protocol):
    """Models by their names in conf/model, and trained ones by their checkpoints."""

    def untrained(self, model: str, *overrides: str) -> "partial[nn.Module]":
        """A maker of the model, to be called here or in another process.

        Args:
            model: as in conf/model; its size is that of the measurement.
            overrides: as of train.py, e.g. "size.image_size=512".
        """

    def weighted(self, checkpoint: str) -> "partial[nn.Module]":
        """A maker of a run's model with the weights of its checkpoint."""

    def network(self, checkpoint: str) -> Network:
        """The model of a run's checkpoint without its data; UsageError if it is none."""

    def trained(self, checkpoint: str) -> Trained:
        """The model of a run's checkpoint; UsageError if it is none."""
