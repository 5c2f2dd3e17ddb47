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

from data.beton.files import BetonSettings
from data.beton.loader import FFCVReader
from data.datasets.arrays import HeldOut
from data.datasets.source import Source, Split
from data.order import EpochOrder
from data.progressive import GrowingBatches, Ramp
from data.torch_loader import TorchReader, Views
from data.view import View
from infvit.errors import UsageError, expect

Batch = tuple[Tensor, Tensor]
Transform = Callable[[Tensor, Tensor], Tensor]


class ImageDataModule(LightningDataModule):
    """Images of a source in batches, augmented and normalised on the device.

    Training and validation use `loader`; testing uses the exact pipeline of the torch loader (PIL, bicubic), whatever
    loader trains, unless `tested_by` says otherwise.

    Args:
        name: of the data set, for tables and file names.
        source: the images.
        loader: reads them: `FFCVReader` or `TorchReader`.
        view: how an image becomes the model's square.
        batch_size: images per optimizer step, over all devices and accumulated batches together.
        eval_batch_size: images per batch and device in validation and test.
        cache_dir: where files are written once.
        seed: of the order of the images and of all that is random in one image.
        mean, std: of the channels, for normalisation, on the scale [0, 1].
        workers: threads (FFCV) or processes (torch) per device that read.
        beton: how FFCV's files are written.
        augment: uint8 images (B, 3, h, w), keys (B,) → such images, on the device, in training.
        erasing: normalised images, keys → such images, likewise.
        repeats: how often an image is seen in one epoch of training (DeiT's repeated augmentation).
        progressive: sides of the training images that grow with the epochs; None for the view's in all.
        validation_fraction: share of the training images to validate with instead of the source's validation images,
            which are then out of reach: for searching a recipe. There is no test in such a run.
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
        if not 0 <= validation_fraction < 1:
            raise UsageError(f"data.validation_fraction={validation_fraction} is no share: expected 0 ≤ fraction < 1")
        for size, what in ((batch_size, "batch_size"), (eval_batch_size, "eval_batch_size"), (repeats, "repeats")):
            expect(size >= 1, f"{what}={size}", "1 or more")
        expect(workers >= 0, f"workers={workers}", "0 or more")
        for scale, what in ((mean, "mean"), (std, "std")):
            expect(len(scale) == 3 and all(map(math.isfinite, scale)), f"{what}={list(scale)}", "a number a channel, 3")
        expect(all(scale > 0 for scale in std), f"std={list(std)}", "numbers above 0")
        self.tests = not validation_fraction
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
        self.begun = (0, 0)
        self.train_size, self.val_size = len(source.split("train")), len(source.split("val"))
        self.fingerprint = _short(source.split("train").fingerprint(), source.split("val").fingerprint())
        if self.train_size and batch_size > self.train_size:
            raise UsageError(
                f"recipe.batch_size={batch_size} is more than the {self.train_size} training images of {self.name}: "
                f"give at most {self.train_size}"
            )

    @property
    def paths(self) -> Sequence[str]:
        """Of the validation images, in order, as <class>/<name> under some root; empty where they are no files."""
        return getattr(self.source.split("val"), "paths", [])

    def original_size(self, place: int) -> tuple[int, int]:
        """(width, height) of a validation image as it was published, where there are `paths`."""
        images: Any = self.source.split("val")
        with Image.open(io.BytesIO(images.read(place))) as image:  # its header alone
            return image.size

    @property
    def seen(self) -> str:
        """How the exact pipeline sees an image, in words."""
        mean, std = (" ".join(f"{x:.4g}" for x in scale.flatten().tolist()) for scale in (self.mean, self.std))
        return f"{self.view.evaluation()}, mean {mean}, std {std}"

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps of the data: the names of the classes, for predictions without the data; the epoch
        and how many of its batches each process has trained on, to go on with the next one."""
        assert self.trainer is not None
        loop = self.trainer.fit_loop
        epochs: Any = loop.epoch_progress.current
        batches = loop.epoch_loop.batch_progress.current
        begun = epochs.started > epochs.processed
        return {"classes": self.classes, "begun": [epochs.processed, batches.completed if begun else 0]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        epoch, batches = state_dict.get("begun", (0, 0))  # checkpoints of before were written between epochs
        self.begun = (epoch, batches)

    def prepare_data(self) -> None:
        """Writes what the loader needs, once; Lightning calls it in one process of a machine."""
        if self.trainer is not None and self.trainer.testing:
            self.test_reader.prepare(self.source.split("val"), self.name, "val", self.cache_dir, self.beton)
            return
        if not self.train_size:
            raise UsageError(
                f"data={self.name} has no images to train on, as train/<class>/* in data.root=DIR would be: it is for "
                "eval.py, train on other data"
            )
        for split in ("train", "val"):
            self.reader.prepare(self.source.split(split), self.name, split, self.cache_dir, self.beton)

    def per_device(self, trainer: Trainer) -> int:
        """Images in one batch of one device; UsageError if the global batch does not divide."""
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
        # Now, not when the epoch starts: processes that read begin to read with their loader.
        epoch, batches = self.begun
        order.begin(epoch, batches * batch_size)

        def at(side: int) -> Iterable[Batch]:
            return self._loader(self.reader, "train", replace(self.view, size=side), order, batch_size)

        if self.progressive is None:
            return at(self.view.size)
        side = partial(self.progressive.side, full=self.view.size)
        return GrowingBatches(at, side, order, len(order) // batch_size)

    def val_dataloader(self) -> Iterable[Batch]:
        order = self._order(self.val_size, shuffle=False)
        return self._loader(self.reader, "val", self.view.evaluation(), order, self.eval_batch_size)

    def tested_by(self, reader: FFCVReader | TorchReader) -> "ImageDataModule":
        """Itself, testing with `reader` from now on."""
        self.test_reader = reader
        return self

    def test_dataloader(self) -> Iterable[Batch]:
        order = self._order(self.val_size, shuffle=False)
        return self._loader(self.test_reader, "val", self.view.evaluation(), order, self.eval_batch_size)

    def examples(self, count: int) -> Tensor:
        """Some validation images by the exact pipeline, evenly spread, always the same: uint8 (n, 3, h, w)."""
        images, view = self.source.split("val"), self.view.evaluation()
        return torch.stack([view(images[place][0]) for place in self._spread(count)])

    def exact(self, count: int | None, batch_size: int) -> Iterable[tuple[Tensor, Tensor, Tensor]]:
        """The validation images, or `count` of them as `examples` has them, by the exact pipeline, without a trainer.

        Yields uint8 (B, 3, h, w), labels (B,), and the places of the images in their set (B,).
        """
        places = self._spread(self.val_size if count is None else count)
        views = Views(self.source.split("val"), self.view.evaluation(), with_keys=False)
        draws = [(place, 0) for place in places]
        loader = DataLoader(views, batch_size, sampler=draws, num_workers=self.workers)
        parts = torch.tensor(places).split(batch_size)
        for (images, labels), part in zip(loader, parts, strict=True):
            yield images, labels, part

    def placed(self, boxes: Tensor, width: int, height: int) -> Tensor:
        """Boxes in an image of that size as boxes in its view by the exact pipeline, see `View.placed`."""
        return self.view.evaluation().placed(boxes, width, height)

    def _spread(self, count: int) -> list[int]:
        """Places of so many validation images, evenly spread."""
        return np.linspace(0, self.val_size - 1, min(count, self.val_size)).round().astype(int).tolist()

    def _order(self, size: int, shuffle: bool) -> EpochOrder:
        trainer = self.trainer
        assert trainer is not None
        return EpochOrder(
            size, self.batch_size, self.seed, shuffle, trainer.global_rank, trainer.world_size, self.repeats
        )

    def _loader(
        self, reader: FFCVReader | TorchReader, split: Split, view: View, order: EpochOrder, batch_size: int
    ) -> Iterable[Batch]:
        assert self.trainer is not None
        images, device = self.source.split(split), self.trainer.strategy.root_device
        files = (self.name, split, self.cache_dir, self.beton)
        return reader.loader(images, *files, view, order, batch_size, self.workers, device)

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], dataloader_idx: int) -> Batch:
        """uint8 → augmentation → [0, 1] → normalised → erasing, all on the device; augmentation in training alone.

        A batch of training has the keys of its images: what happens to an image depends on (seed, epoch, image, which
        of its repeats) alone, whatever the loader, the processes and the batch size are.
        """
        images, labels, *keys = batch
        training: Any = self.trainer is not None and self.trainer.training
        if training and self.augment is not None:
            images = self.augment(images, *keys)
        images = self.normalised(images)
        if training and self.erasing is not None:
            images = self.erasing(images, *keys)
        if self.trainer is not None:
            # Lightning converts what comes from a loader, and these were no floating-point numbers then.
            images = self.trainer.precision_plugin.convert_input(images)
        return images, labels

    def normalised(self, images: Tensor) -> Tensor:
        """uint8 (B, 3, h, w) → float32 with the mean and the standard deviation of the channels taken out."""
        return images.div(255).sub_(self.mean.to(images.device)).div_(self.std.to(images.device))


def _short(*fingerprints: str) -> str:
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()[:16]
