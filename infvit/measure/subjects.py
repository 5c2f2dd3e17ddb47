"""What a measurement is given to work on. `eval.py` supplies it; the library itself reads no configuration."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from lightning.pytorch import LightningDataModule, Trainer
from PIL.Image import Image
from torch import Tensor, nn


class ImagesToTest(Protocol):
    """A data module whose test images are read by a reader of one's choice.

    Attributes:
        classes: their names, in order.
        paths: of the test images, in order; empty where they are no files.
    """

    classes: list[str]

    @property
    def paths(self) -> Sequence[str]: ...

    def tested_by(self, reader: Any) -> LightningDataModule:
        """Itself, testing with `reader` from now on."""


class Trained(NamedTuple):
    """A model with trained weights, the images to measure it on, and a trainer that does it.

    Attributes:
        net: images → logits (B, classes).
        data: the images.
        readers: of them, by the names of the pipelines, "exact" (PIL) and "ffcv", to be called: UsageError where one is
            not installed.
        trainer: that tests on them.
        row: what is measured, as a table's row begins: model, ckpt, weights, data, fingerprint, view (of the exact
            pipeline, in words), precision.
        run_dir: the folder of the run that wrote the checkpoint; None for a model of timm.
        last: whether the checkpoint is the run's last one, which its row in a table stands for.
    """

    net: nn.Module
    data: ImagesToTest
    readers: Mapping[str, Callable[[], Any]]
    trainer: Trainer
    row: dict[str, Any]
    run_dir: Path | None = None
    last: bool = False


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


class Images(Protocol):
    """The validation images of a data set by the exact pipeline, without a trainer."""

    @property
    def paths(self) -> Sequence[str]:
        """Of them, in order, <class>/<name> at the end; empty where they are no files."""

    def original_size(self, place: int) -> tuple[int, int]:
        """(width, height) of one as it was published, where there are `paths`."""

    def examples(self, count: int) -> Tensor:
        """So many, evenly spread, always the same: uint8 (n, 3, h, w)."""

    def exact(self, count: int | None, batch_size: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """Batches of all, or of `count` evenly spread: uint8 (B, 3, h, w), labels (B,) and places in the set (B,)."""

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 images as the model takes them."""

    def placed(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes (n, 4) in an image of that size → boxes in what `exact` makes of it."""


class Studied(NamedTuple):
    """A run's model before and after its training, and images to look into it with.

    Attributes:
        model: with the weights of the checkpoint, in evaluation mode.
        start: as it was made from the run's seed, likewise.
        images: of the run's data, or those that `data=` names.
        row: as of `Trained`.
        run_dir, last: as of `Trained`.
    """

    model: nn.Module
    start: nn.Module
    images: Images
    row: dict[str, Any]
    run_dir: Path
    last: bool


class Subjects(Protocol):
    """Models by their names in conf/model, and trained ones by their checkpoints."""

    def untrained(self, model: str, *overrides: str) -> "partial[nn.Module]":
        """A maker of the model, to be called here or in another process.

        Args:
            model: as in conf/model; its size is that of the measurement.
            overrides: as of train.py, e.g. "size.image_size=512".
        """

    def network(self, checkpoint: str) -> Network:
        """The model of a run's checkpoint without its data; UsageError if it is none."""

    def trained(self, checkpoint: str) -> Trained:
        """The model of a run's checkpoint; UsageError if it is none."""

    def studied(self, checkpoint: str) -> Studied:
        """The model of a run's checkpoint and the one that its training started from; UsageError if it is none."""

    def pretrained(self, name: str, weights: str | None) -> Trained:
        """timm's model with its published weights or those of a file; UsageError if there are none."""
