"""The order of the images of an epoch, over steps and processes."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from data.draws import sample_keys


@dataclass(eq=False)
class EpochOrder:
    """The images that one process sees in an epoch, in order; a sampler for a DataLoader.

    Training (`shuffle`): a permutation drawn from (seed, epoch) is cut into global batches of `batch_size`; rank r
    takes the images r, r + world_size, ... of every global batch, so a step trains on the same images for any world
    size. No image comes twice; the incomplete last global batch is dropped, with other images in each epoch. With
    `repeats` = 3 each epoch takes a third of the images, each three times in a row of the permutation, so the three go
    to different ranks of one step, as with DeiT's RASampler (which also pads to equal parts by repeating images; here
    nothing is padded).

    Evaluation: rank r takes the images r, r + world_size, ...: every image once, without padding, also for sizes that
    do not divide.
    """

    size: int
    batch_size: int
    seed: int = 0
    shuffle: bool = True
    rank: int = 0
    world_size: int = 1
    repeats: int = 1
    epoch: int = field(default=0, init=False)
    resumed: tuple[int, int] = field(default=(0, 0), init=False)

    def resume(self, epoch: int, images: int) -> None:
        """Skips the first `images` of this rank in `epoch`, which a resumed run has trained on already."""
        self.epoch, self.resumed = epoch, (epoch, images)

    def set_epoch(self, epoch: int) -> None:
        """Sets the epoch; Lightning calls it before each one, also after a resume."""
        self.epoch = epoch

    def indices(self) -> np.ndarray:
        """Returns this rank's images of the epoch in order: int64 (len(self),), fewer in the epoch that was resumed."""
        if not self.shuffle:
            return self._places()
        permutation = np.random.default_rng((self.seed, self.epoch)).permutation(self.size)
        return np.repeat(permutation, self.repeats)[: self.size][self._remaining()]

    def keys(self) -> Tensor:
        """Returns the keys of `indices()`, from which their augmentation is drawn: (n,) int64, see data/draws.py.

        A key is made of (seed, epoch, image, repeat); rank and batch size do not enter.
        """
        repeats = torch.from_numpy(self._remaining() % self.repeats)
        return sample_keys(self.seed, self.epoch, torch.from_numpy(self.indices()), repeats)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        """Yields (image, key) for each of `indices()`."""
        return zip(self.indices().tolist(), self.keys().tolist(), strict=True)

    def __len__(self) -> int:
        """Images of a whole epoch; Lightning counts those that were skipped as done."""
        return len(self._places())

    def _remaining(self) -> np.ndarray:
        """The positions in the epoch's order that belong to this rank and are not skipped."""
        epoch, images = self.resumed
        return self._places()[images if self.epoch == epoch else 0 :]

    def _places(self) -> np.ndarray:
        """The positions in the epoch's order that belong to this rank."""
        steps = self.size // self.batch_size
        return np.arange(self.rank, steps * self.batch_size if self.shuffle else self.size, self.world_size)
