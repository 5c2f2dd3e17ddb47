"""The LightningDataModule of every data set: loaders, device-side augmentation, normalisation."""

import hashlib
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, Trainer
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from data.beton.encoding import BetonSettings
from data.beton.files import beton_path
from data.beton.loader import FFCVReader
from data.datasets.arrays import HeldOut
from data.datasets.image_files import some
from data.datasets.source import SPLITS, Source, Split
from data.order import EpochOrder
from data.progressive import GrowingBatches, Ramp
from data.torch_loader import TorchReader, Views
from data.view import View
from infvit.class_names import places
from infvit.errors import UsageError, expect
from infvit.run.ranks import is_global_zero

Batch = tuple[Tensor, Tensor]
Transform = Callable[[Tensor, Tensor], Tensor]


class ImageDataModule(LightningDataModule):
    """Batches of a source's images, augmented and normalised on the device.

    Training and validation use `loader`; testing uses the exact pipeline of the torch loader (PIL, bicubic), whatever
    loader trains, unless `test_with` changes it.

    Args:
        name: of the data set, for tables and file names.
        source: the images.
        loader: `FFCVReader` or `TorchReader`.
        view: the square that the model sees of an image.
        batch_size: images per optimizer step, over all devices and accumulated batches together.
        eval_batch_size: images per batch and device in validation and test.
        cache_dir: folder of FFCV's files.
        seed: of the order of the images and of their random augmentation.
        mean, std: of the channels, for normalisation, on the scale [0, 1].
        workers: reading threads (FFCV) or processes (torch) per device.
        beton: how FFCV's files are written.
        augment: (uint8 images (B, 3, h, w), keys (B,)) → such images, on the device, in training; may work in place.
        erasing: (normalised images, keys) → such images, likewise.
        repeats: how often an image is seen in one training epoch (DeiT's repeated augmentation).
        progressive: sides of the training images that grow with the epochs; None: the view's side in all epochs.
        validation_fraction: share of the training images to validate on instead of the source's validation images,
            which are then never read: for searching a recipe. Such a run has no test.
    """

    name: str

    def __init__(
        self,
        name: str,
        source: Source,
        loader: FFCVReader | TorchReader,
        view: View,
        batch_size: int,
        cache_dir: str,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        eval_batch_size: int = 256,
        workers: int = 2,
        beton: BetonSettings | None = None,
        augment: Transform | None = None,
        erasing: Transform | None = None,
        repeats: int = 1,
        progressive: Ramp | None = None,
        validation_fraction: float = 0.0,
    ) -> None:
        super().__init__()
        share = f"data.validation_fraction={validation_fraction}"
        expect(0 <= validation_fraction < 1, share, "a share, 0 ≤ fraction < 1")
        for size, what in ((batch_size, "batch_size"), (eval_batch_size, "eval_batch_size"), (repeats, "repeats")):
            expect(size >= 1, f"{what}={size}", "1 or more")
        expect(workers >= 0, f"workers={workers}", "0 or more")
        for scale, what in ((mean, "mean"), (std, "std")):
            expect(len(scale) == 3 and all(map(math.isfinite, scale)), f"{what}={list(scale)}", "a number a channel, 3")
        expect(all(scale > 0 for scale in std), f"std={list(std)}", "numbers above 0")
        self.has_test = not validation_fraction
        source = HeldOut(source, validation_fraction) if validation_fraction else source
        self.source, self.reader, self.view = source, loader, view
        self.test_reader: FFCVReader | TorchReader = TorchReader()
        self.name, self.loader_name = name, loader.name
        self.batch_size, self.eval_batch_size, self.workers = batch_size, eval_batch_size, workers
        self.cache_dir, self.seed = Path(cache_dir).expanduser().resolve(), seed
        self.mean, self.std = torch.tensor(mean).view(-1, 1, 1), torch.tensor(std).view(-1, 1, 1)
        self.beton = beton or BetonSettings()
        self.augment, self.erasing, self.repeats, self.progressive = augment, erasing, repeats, progressive
        if progressive is not None:
            progressive.side(0, view.size)
        self.classes, self.num_classes = source.classes, len(source.classes)
        self.label_of: Tensor | None = None
        self.resumed = (0, 0)
        self.train_size, self.val_size = len(source.split("train")), len(source.split("val"))
        content = " ".join(source.split(split).fingerprint() for split in SPLITS)
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:16]
        if self.train_size and batch_size > self.train_size:
            raise UsageError(
                f"recipe.batch_size={batch_size} is more than the {self.train_size} training images of {self.name}: "
                f"give at most {self.train_size}"
            )

    @property
    def paths(self) -> Sequence[str]:
        """The validation images in order, as <class>/<name> under some root; empty if they are not files."""
        return getattr(self.source.split("val"), "paths", [])

    def original_size(self, index: int) -> tuple[int, int]:
        """Returns (width, height) of a validation image as it was published; needs `paths`."""
        images: Any = self.source.split("val")
        with Image.open(io.BytesIO(images.read(index))) as image:  # reads the header only
            return image.size

    @property
    def evaluation_view(self) -> str:
        """Describes the exact pipeline: size, crop, interpolation, normalisation."""
        mean, std = (" ".join(f"{x:.4g}" for x in scale.flatten().tolist()) for scale in (self.mean, self.std))
        return f"{self.view.evaluation()}, mean {mean}, std {std}"

    def match_classes(self, classes: Sequence[str], model: str) -> None:
        """Makes the labels of batches those of a model's `classes`, by name; UsageError if it does not know one."""
        if self.classes == list(classes):
            return
        found = places(self.classes, classes)
        unknown = [name for name, place in zip(self.classes, found, strict=True) if place is None]
        if unknown:
            raise UsageError(
                f"{model} knows {len(classes):,} classes ({some(list(classes))}), and not these of data={self.name}: "
                f"{some(unknown)}; give data of its classes, whose names are those of the folders"
            )
        if is_global_zero():
            print(f"data={self.name}: {len(found):,} classes, matched by name with the {len(classes):,} of {model}")
        self.label_of, self.classes = torch.tensor(found), list(classes)

    def state_dict(self) -> dict[str, Any]:
        """The names of the classes, for predictions without the data, and (epoch, batches done in it) for a resume."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        batches = loop.epoch_loop.batch_progress.current
        started = epochs.started > epochs.processed
        return {"classes": self.classes, "resumed": [epochs.processed, batches.completed if started else 0]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.resumed = tuple(state_dict["resumed"])

    def prepare_data(self) -> None:
        """Writes the loader's files unless they exist; Lightning calls it in one process per node."""
        if self.trainer is not None and self.trainer.testing:
            self.test_reader.prepare(self.source.split("val"), self._beton("val"), self.beton)
            return
        if not self.train_size:
            raise UsageError(
                f"data={self.name} has no images to train on, as train/<class>/* in data.root=DIR would be: it is for "
                "eval.py, train on other data"
            )
        for split in SPLITS:
            self.reader.prepare(self.source.split(split), self._beton(split), self.beton)

    def per_device(self, trainer: Trainer) -> int:
        """Returns the images in one batch of one device; UsageError if the global batch does not divide."""
        parts = trainer.world_size * trainer.accumulate_grad_batches
        if self.batch_size % parts:
            raise UsageError(
                f"recipe.batch_size={self.batch_size} does not divide over {trainer.world_size} devices × "
                f"{trainer.accumulate_grad_batches} accumulated batches: give a multiple of {parts}"
            )
        return self.batch_size // parts

    def train_dataloader(self) -> Iterable[Batch]:
        assert self.trainer is not None
        batch_size, order = self.per_device(self.trainer), self._order(self.train_size, shuffle=True)
        # Now, not when the epoch starts: worker processes start reading together with their loader.
        epoch, batches = self.resumed
        order.resume(epoch, batches * batch_size)

        def at(side: int) -> Iterable[Batch]:
            return self._loader(self.reader, "train", replace(self.view, size=side), order, batch_size)

        if self.progressive is None:
            return at(self.view.size)
        side = partial(self.progressive.side, full=self.view.size)
        return GrowingBatches(at, side, order, len(order) // batch_size)

    def val_dataloader(self) -> Iterable[Batch]:
        return self._evaluation_loader(self.reader)

    def test_with(self, reader: FFCVReader | TorchReader) -> "ImageDataModule":
        """Makes `reader` the test's loader; returns itself."""
        self.test_reader = reader
        return self

    def test_dataloader(self) -> Iterable[Batch]:
        return self._evaluation_loader(self.test_reader)

    def _evaluation_loader(self, reader: FFCVReader | TorchReader) -> Iterable[Batch]:
        order = self._order(self.val_size, shuffle=False)
        return self._loader(reader, "val", self.view.evaluation(), order, self.eval_batch_size)

    def examples(self, count: int) -> Tensor:
        """Returns `count` validation images, evenly spread, by the exact pipeline: uint8 (n, 3, h, w)."""
        images, view = self.source.split("val"), self.view.evaluation()
        return torch.stack([view(images[index][0]) for index in self._spread(count)])

    def exact(self, count: int | None, batch_size: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """The validation images, or `count` of them as in `examples`, by the exact pipeline, without a trainer.

        Yields uint8 (B, 3, h, w), labels (B,), and the indices of the images (B,).
        """
        indices = self._spread(self.val_size if count is None else count)
        views = Views(self.source.split("val"), self.view.evaluation(), with_keys=False)
        samples = [(index, 0) for index in indices]
        loader = DataLoader(views, batch_size, sampler=samples, num_workers=self.workers)
        for (images, labels), part in zip(loader, torch.tensor(indices).split(batch_size), strict=True):
            yield images, self._matched(labels), part

    def boxes_in_view(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Returns boxes in an image of that size as boxes in its evaluation view, see `View.boxes_in_view`."""
        return self.view.evaluation().boxes_in_view(boxes, width, height)

    def _spread(self, count: int) -> list[int]:
        return np.linspace(0, self.val_size - 1, min(count, self.val_size)).round().astype(int).tolist()

    def _beton(self, split: Split) -> Path:
        return beton_path(self.source.split(split), self.name, split, self.cache_dir, self.beton)

    def _order(self, size: int, shuffle: bool) -> EpochOrder:
        assert self.trainer is not None
        place = self.trainer.global_rank, self.trainer.world_size
        return EpochOrder(size, self.batch_size, self.seed, shuffle, *place, self.repeats)

    def _loader(
        self, reader: FFCVReader | TorchReader, split: Split, view: View, order: EpochOrder, batch_size: int
    ) -> Iterable[Batch]:
        assert self.trainer is not None
        images, device = self.source.split(split), self.trainer.strategy.root_device
        return reader.loader(images, self._beton(split), view, order, batch_size, self.workers, device)

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], dataloader_idx: int) -> Batch:
        """uint8 → augmentation → [0, 1] → normalisation → erasing, on the device; the augmentation in training only.

        A training batch has the keys of its images, so the augmentation of an image depends on (seed, epoch, image,
        repeat) only, whatever the loader, the number of processes and the batch size.
        """
        images, labels, *keys = batch
        labels = self._matched(labels)
        training: Any = self.trainer is not None and self.trainer.training
        if training and self.augment is not None:
            images = self.augment(images, *keys)
        images = self.normalised(images)
        if training and self.erasing is not None:
            images = self.erasing(images, *keys)
        if self.trainer is not None:
            # Lightning converts floating-point batches only, and these were integers when they came from the loader.
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels

    def _matched(self, labels: Tensor) -> Tensor:
        return labels if self.label_of is None else self.label_of.to(labels.device)[labels]

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, h, w) → float32, normalised by the mean and the standard deviation of the channels."""
        return images.div(255).sub_(self.mean.to(images.device)).div_(self.std.to(images.device))
