"""The torch loader: PIL decodes the images themselves. For machines without FFCV, and for every reported number."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.beton.files import BetonSettings
from data.datasets.source import ImageSet, Split
from data.order import EpochOrder
from data.view import View

READ_TIMEOUT = 600.0
"""Seconds that a loader waits for a batch: a disk or a process that reads may hang."""


class Views(Dataset):
    """The images of a set as the model sees them; randomness depends on the key of an image alone."""

    def __init__(self, images: ImageSet, view: View, with_keys: bool) -> None:
        self.images, self.view, self.with_keys = images, view, with_keys

    def __getitem__(self, seen: tuple[int, int]) -> tuple[Tensor, int] | tuple[Tensor, int, int]:
        index, key = seen
        image, label = self.images[index]
        pixels = self.view(image, torch.tensor([key]))
        return (pixels, label, key) if self.with_keys else (pixels, label)

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class TorchReader:
    """Makes torch DataLoaders; equal keys give equal crops for any number of workers, and those of FFCV.

    Args:
        timeout: seconds after which a batch that does not come is an error.
    """

    timeout: float = READ_TIMEOUT

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
        """Batches of (uint8 (B, 3, size, size), labels int64 (B,)), in training with keys int64 (B,) as third.

        Its `sampler` is the order.
        """
        return DataLoader(
            Views(images, view, with_keys=order.shuffle),
            batch_size=batch_size,
            sampler=order,
            num_workers=workers,
            timeout=self.timeout if workers else 0,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # Starting an iterator draws a seed that nothing here uses: it must not come from the run's own randomness.
            generator=torch.Generator(),
        )
