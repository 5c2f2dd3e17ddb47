"""The torch loader: PIL decodes the images themselves. For machines without FFCV, and for every reported number."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.beton import BetonSettings
from data.order import EpochOrder
from data.source import ImageSet, Split
from data.view import View


class Views(Dataset):
    """The images of a set as the model sees them; randomness depends on (seed, epoch, place in the epoch) alone."""

    def __init__(self, images: ImageSet, view: View, seed: int) -> None:
        self.images, self.view, self.seed = images, view, seed

    def __getitem__(self, draw: tuple[int, int, int]) -> tuple[Tensor, int]:
        epoch, place, index = draw
        image, label = self.images[index]
        return self.view(image, np.random.default_rng((self.seed, epoch, place))), label

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class TorchReader:
    """Makes torch DataLoaders; equal seeds give equal batches for any number of workers."""

    name = "torch"

    def prepare(self, images: ImageSet, name: str, split: Split, cache_dir: Path, settings: BetonSettings) -> None:
        """Nothing to prepare: the images are read as they are."""

    def loader(
        self,
        images: ImageSet,
        name: str,
        split: Split,
        cache_dir: Path,
        settings: BetonSettings,
        view: View,
        order: EpochOrder,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> Iterable:
        """Batches of (uint8 (B, 3, size, size), int64 (B,)); its `sampler` is the order."""
        return DataLoader(
            Views(images, view, order.seed),
            batch_size=batch_size,
            sampler=order,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Starting an iterator draws a seed that nothing here uses: it must not come from the run's own randomness.
            generator=torch.Generator(),
        )
