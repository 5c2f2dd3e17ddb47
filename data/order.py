"""Which image goes where: the one definition of the order of an epoch over steps and processes."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from data.draws import sample_keys


class EpochOrder:
    """The images that one process sees in an epoch, in order.

    Training (`shuffle`): a permutation drawn from (seed, epoch) is cut into global batches of `batch_size`; process r
    takes the images r, r + world_size, ... of every global batch, so a step trains on the same images however many
    processes share it. No image comes twice; the incomplete last global batch is left out, other images in each epoch.
    With `repeats` = 3 each epoch takes a third of the images, each three times in a row of the permutation, so the
    three go to different processes and into one step, as with DeiT's RASampler (which pads to equal parts with repeated
    images where here nothing is padded).

    Evaluation: process r takes the images r, r + world_size, ...; every image once, nothing padded, also for sizes
    that do not divide.

    Args:
        size: number of images.
        batch_size: images per step over all processes; used in training alone.
        seed: of the permutations.
        shuffle: training or evaluation.
        rank, world_size: this process and how many there are.
        repeats: how often each chosen image is seen in an epoch of training.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        world_size: int = 1,
        repeats: int = 1,
    ) -> None:
        self.size, self.batch_size, self.seed, self.shuffle = size, batch_size, seed, shuffle
        self.rank, self.world_size, self.repeats = rank, world_size, repeats
        self.epoch = 0
        self.begun = (0, 0)

    def begin(self, epoch: int, images: int) -> None:
        """Leaves out the first `images` of this process in `epoch`, which a run that goes on has seen before."""
        self.epoch, self.begun = epoch, (epoch, images)

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch; Lightning calls it before each one, and with the right number after a resumption."""
        self.epoch = epoch

    def indices(self) -> np.ndarray:
        """This process's images of the epoch, in order: int64 (len(self),), or less in an epoch that was begun."""
        return self._whole()[self._mine()]

    def keys(self) -> Tensor:
        """What the random augmentation of each of `indices()` is drawn from: (len(self),) int64, see data/draws.py.

        A key is made of (seed, epoch, image, which of its repeats); rank and batch size do not enter.
        """
        repeats = torch.from_numpy(self._mine() % self.repeats)
        return sample_keys(self.seed, self.epoch, torch.from_numpy(self.indices()), repeats)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """(image, key) of each of `indices()`."""
        return zip(self.indices().tolist(), self.keys().tolist(), strict=True)

    def __len__(self) -> int:
        """Images of a whole epoch; Lightning counts those that were seen before as done."""
        return len(self._places())

    def _whole(self) -> np.ndarray:
        if not self.shuffle:
            return np.arange(self.size)
        permutation = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        return np.repeat(permutation, self.repeats)[: self.size]

    def _mine(self) -> np.ndarray:
        """The places of the whole epoch's order that belong to this process and are still to come."""
        epoch, images = self.begun
        return self._places()[images if self.epoch == epoch else 0 :]

    def _places(self) -> np.ndarray:
        """The places of the whole epoch's order that belong to this process."""
        if not self.shuffle:
            return np.arange(self.rank, self.size, self.world_size)
        steps = self.size // self.batch_size
        return np.arange(self.rank, steps * self.batch_size, self.world_size)
