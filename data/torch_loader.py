"""The torch loader: PIL decodes the images themselves. For machines without FFCV, and for every reported number."""

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.datasets.source import ImageSet
from data.order import EpochOrder
from data.view import View
from infvit.measure.subprocess_case import end_with_parent


class Views(Dataset):
    """The images of a set as the model sees them; their randomness depends on the key of each image alone."""

    def __init__(self, images: ImageSet, view: View, with_keys: bool) -> None:
        self.images, self.view, self.with_keys = images, view, with_keys

    def __getitem__(self, sample: tuple[int, int]) -> tuple[Tensor, int] | tuple[Tensor, int, int]:
        index, key = sample
        image, label = self.images[index]
        pixels = self.view(image, torch.tensor([key]))
        return (pixels, label, key) if self.with_keys else (pixels, label)

    def __len__(self) -> int:
        return len(self.images)


def _end_with_rank(_worker: int) -> None:
    """Has a reading process end with its rank, and not before it when torchrun sends SIGTERM to the rank's group."""
    os.setpgrp()
    end_with_parent()


@dataclass(frozen=True)
class TorchReader:
    """Makes torch DataLoaders; equal keys give equal crops for any number of workers, the same as FFCVReader's.

    Args:
        timeout: seconds after which a missing batch is an error.
    """

    timeout: float = 600.0

    name = "torch"

    def prepare(self, *_: object) -> None:
        """Does nothing: the images are read as they are."""

    def loader(
        self,
        images: ImageSet,
        beton: Path,
        view: View,
        order: EpochOrder,
        batch_size: int,
        workers: int,
        device: torch.device,
    ) -> Iterable:
        """Returns batches of (uint8 (B, 3, size, size), labels int64 (B,)); in training keys int64 (B,) come third.

        `order` is its `sampler`.
        """
        return DataLoader(
            Views(images, view, with_keys=order.shuffle),
            batch_size=batch_size,
            sampler=order,
            num_workers=workers,
            timeout=self.timeout if workers else 0,
            worker_init_fn=_end_with_rank,
            persistent_workers=workers > 0,
            pin_memory=device.type == "cuda",
            # An iterator draws a seed, which nothing here uses, when it starts: not from the run's own generator.
            generator=torch.Generator(),
        )
