"""Loaders, data modules and trainers on the digits, for tests."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from data.beton.encoding import BetonSettings
from data.beton.files import beton_path
from data.datamodule import ImageDataModule
from data.datasets.digits import Digits
from data.order import EpochOrder
from data.torch_loader import TorchReader
from data.view import View

RAW, CPU = BetonSettings(), torch.device("cpu")
VIEW = View(8, 1.0)


def loader(reader, cache, images=None, view=VIEW, order=None, batch_size=64, workers=1, settings=RAW):
    """The loader of `images`, by default the digits' training images in the order of seed 0."""
    images = images or Digits().split("train")
    order = order or EpochOrder(len(images), batch_size)
    beton = beton_path(images, "test", "train", cache, settings)
    reader.prepare(images, beton, settings)
    return reader.loader(images, beton, view, order, batch_size, workers, CPU)


def datamodule(cache, reader=None, source=None, kind=ImageDataModule, **options: Any) -> ImageDataModule:
    defaults = {"view": VIEW, "batch_size": 128, "seed": 0, "mean": [0.5] * 3, "std": [0.5] * 3, "workers": 0}
    return kind("digits", source or Digits(), reader or TorchReader(), cache_dir=str(cache), **defaults | options)


def trainer(**options: Any) -> Trainer:
    off = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(**{"accelerator": "cpu", "use_distributed_sampler": False} | off | options)


class Recorder(LightningModule):
    """Records the batches of training by epoch, the sides of the validation images, and the labels of the test."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.trained, self.validated, self.tested = {}, {}, []

    def training_step(self, batch, *_):
        self.trained.setdefault(self.current_epoch, []).append(batch)
        return self.weight.sum()

    def validation_step(self, batch, *_):
        self.validated.setdefault(self.current_epoch, set()).add(batch[0].shape[-1])

    def test_step(self, batch, *_):
        self.tested.append(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)
