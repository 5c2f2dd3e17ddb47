"""Where measurements get their models from. `infvit.cli` implements it; the library itself reads no configuration."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import LightningDataModule, Trainer
from PIL.Image import Image
from torch import Tensor, nn


class EvaluationData(Protocol):
    """The validation images of a data set, as a measurement uses them (`data.datamodule.ImageDataModule`).

    Attributes:
        name: of the data set.
        fingerprint: hash of its content.
        classes: names of the classes, in the order of the labels.
        val_size: number of validation images.
        evaluation_view: size, filter, crop and normalisation of the exact pipeline, in words.
    """

    name: str
    fingerprint: str
    classes: list[str]
    val_size: int

    @property
    def evaluation_view(self) -> str: ...

    @property
    def paths(self) -> Sequence[str]:
        """<class>/<name> of each image, in order; empty if the images are not files."""

    def test_with(self, reader: Any) -> LightningDataModule:
        """Returns itself after setting the reader of the test images."""

    def original_size(self, place: int) -> tuple[int, int]:
        """(width, height) in pixels of the original image at index `place`; needs `paths`."""

    def examples(self, count: int) -> Tensor:
        """`count` images at fixed, evenly spaced indices: uint8 (count, 3, h, w)."""

    def exact(self, count: int | None, batch_size: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Batches of all images, or of `count` evenly spaced ones: uint8 (B, 3, h, w), labels (B,), indices (B,)."""

    def boxes_in_view(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes (n, 4) in an original image of that size → boxes in the image that `exact` yields."""


@dataclass
class LoadedRun:
    """A trained model: of a run's checkpoint, or timm's with published weights.

    Attributes:
        name: of the model, in conf/model or in timm.
        model: images (B, 3, h, w) → logits (B, classes), in evaluation mode.
        classes: their names, in the order of the labels; those of ImageNet are synsets.
        mean, std: of the channels, for normalisation, on the scale [0, 1].
        view: PIL image → uint8 (3, h, w), the exact pipeline of evaluation.
        make_data: builds the data; called when `data` is first used, so that a prediction does not need them.
        checkpoint: path of the checkpoint; None for a model of timm.
        weights: of a model of timm, a path or "as published"; None for a run.
        run_dir: the folder of the run that wrote the checkpoint; None for a model of timm.
        is_last: whether this is the run's last checkpoint, the one that its row in a table is about.
    """

    name: str
    model: nn.Module
    classes: list[str]
    mean: Sequence[float]
    std: Sequence[float]
    view: Callable[[Image], Tensor]
    make_data: Callable[[], EvaluationData]
    checkpoint: str | None = None
    weights: str | None = None
    run_dir: Path | None = None
    is_last: bool = False

    @cached_property
    def data(self) -> EvaluationData:
        """The run's own data, or those that `data=` names; UsageError if the model has other classes."""
        return self.make_data()


def labelled(runs: Sequence[LoadedRun]) -> dict[str, LoadedRun]:
    """The runs by unique labels: their models' names, or if these repeat their folders, checkpoints, or numbers."""
    names = [run.name for run in runs]
    folders = [run.run_dir.name if run.run_dir else run.name for run in runs]
    files = [f"{f}/{Path(run.checkpoint or str(run.weights)).stem}" for f, run in zip(folders, runs, strict=True)]
    numbered = [f"{name}#{i}" for i, name in enumerate(names, 1)]
    choices = (names, folders, files, numbered)  # as parts of names of files, too, where / becomes _
    unique = next(labels for labels in choices if len({one.replace("/", "_") for one in labels}) == len(labels))
    return dict(zip(unique, runs, strict=True))


class ModelSource(Protocol):
    """Models by their names in conf/model, by the checkpoints of runs, and by their names in timm."""

    def untrained(self, model: str, *overrides: str) -> "partial[nn.Module]":
        """Returns a constructor of the model that can be pickled and called in another process.

        Args:
            model: name in conf/model; its size is that of the measurement.
            overrides: of train.py's config, e.g. "size.image_size=512".
        """

    def load(self, checkpoint: str) -> LoadedRun:
        """The model of a run's checkpoint; UsageError if the file is not one."""

    def initial(self, checkpoint: str) -> nn.Module:
        """The model of the same run before training, rebuilt from the run's seed, in evaluation mode."""

    def pretrained(self, name: str, weights: str | None) -> LoadedRun:
        """timm's model with its published weights, or those of a file; UsageError if there are none."""

    def trainer(self) -> Trainer:
        """A trainer for `Trainer.test` with the devices and the precision of the config."""
