"""Progressive resolution: training images that grow with the epochs, so that the first epochs cost less.

After FFCV's ResNet-50 (github.com/libffcv/ffcv-imagenet), which trains at 160 pixels for three quarters of its epochs.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from data.order import EpochOrder
from infvit.errors import UsageError


@dataclass(frozen=True)
class Ramp:
    """The side of the training images in each epoch: `start`, then growing linearly, then the full side.

    Args:
        start: pixels, up to epoch `begin` · `epochs`.
        begin, end: shares of the epochs between which the side grows; from `end` · `epochs` on it is full.
        epochs: of the whole recipe.
        multiple: every side is a multiple of this, the model's patch size.
    """

    start: int
    begin: float
    end: float
    epochs: int
    multiple: int

    def __post_init__(self) -> None:
        if self.start < self.multiple or self.start % self.multiple:
            near = max(self.start // self.multiple, 1) * self.multiple
            raise UsageError(
                f"recipe.augmentation.progressive.start={self.start} is not a multiple of the patch size "
                f"{self.multiple}: use {near} or {near + self.multiple}"
            )
        last = (self.epochs - 1) / self.epochs
        if not 0 <= self.begin <= self.end <= last:
            raise UsageError(
                f"recipe.augmentation.progressive.begin={self.begin} end={self.end}: expected 0 ≤ begin ≤ end ≤ "
                f"{last:.3g}, so that the last of {self.epochs} epochs trains at the full side"
            )

    def side(self, epoch: int, full: int) -> int:
        """Returns the pixels of a side in this epoch, at most `full`; UsageError if `start` is not less."""
        if self.start >= full:
            raise UsageError(
                f"recipe.augmentation.progressive.start={self.start} is not less than size.image_size={full}: images "
                "would not grow"
            )
        begin, end = self.begin * self.epochs, self.end * self.epochs
        if epoch >= end:
            return full
        grown = self.start + (full - self.start) * max(epoch - begin, 0) / (end - begin) if end > begin else self.start
        return min(round(grown / self.multiple) * self.multiple, full)

    def pixels(self, full: int) -> float:
        """Returns the pixels of all training images as a share of those at the full side."""
        return sum(self.side(epoch, full) ** 2 for epoch in range(self.epochs)) / (self.epochs * full**2)


class GrowingBatches:
    """A training loader that hands each epoch to a loader for that epoch's side.

    Lightning sets the epoch on `sampler` before each one, so a resumed run has the right side.
    """

    batch_sampler = None  # Lightning reads it wherever it finds a `sampler`

    def __init__(
        self, loader: Callable[[int], Iterable[Any]], side: Callable[[int], int], order: EpochOrder, batches: int
    ) -> None:
        self.loader, self.side, self.sampler, self.batches = loader, side, order, batches
        self.current: tuple[int, Iterable[Any]] | None = None

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        side = self.side(self.sampler.epoch)
        if self.current is None or self.current[0] != side:
            self.current = None  # ends the worker processes of the loader before
            self.current = side, self.loader(side)
        yield from self.current[1]
