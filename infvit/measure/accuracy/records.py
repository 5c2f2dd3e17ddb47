"""One record per evaluated image; all numbers, intervals and differences are computed from these records."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn

from infvit.errors import UsageError


@dataclass(frozen=True)
class Records:
    """The records of one evaluation, in the order of the images.

    Attributes:
        index: (n,) int64, ascending: the image's index in its set.
        label: (n,) int32.
        top5: (n, 5) int32: the five likeliest classes, the prediction first; fewer if there are fewer classes.
        log_prob: (n,) float32: the log-softmax of the label, the negative cross-entropy.
        confidence: (n,) float32: the softmax of the prediction.
    """

    index: np.ndarray
    label: np.ndarray
    top5: np.ndarray
    log_prob: np.ndarray
    confidence: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    @property
    def prediction(self) -> np.ndarray:
        """(n,) int32: the likeliest class."""
        return self.top5[:, 0]

    @property
    def correct(self) -> np.ndarray:
        """(n,) bool: whether the prediction is the label."""
        return self.prediction == self.label

    @property
    def in_top5(self) -> np.ndarray:
        """(n,) bool: whether the label is among the five likeliest classes."""
        return (self.top5 == self.label[:, None]).any(1)

    def write(self, path: Path) -> None:
        """Writes an .npz with an array for each attribute."""
        np.savez_compressed(path, **vars(self))


class _Recorder(LightningModule):
    """Collects the records of this rank's images, on the device until the end."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.batches: list[tuple[Tensor, ...]] = []
        # With fewer images than ranks some have none, and still take part in collectives.
        self.allow_zero_length_dataloader_with_multiple_devices = True

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:  # noqa: ARG002
        images, labels = batch
        log_probs = self.net(images).float().log_softmax(-1)
        best = log_probs.topk(min(5, log_probs.shape[1]))
        label = log_probs.gather(1, labels[:, None])[:, 0]
        self.batches.append((labels.int(), best.indices.int(), label, best.values[:, 0].exp()))

    def records(self, index: np.ndarray) -> Records | None:
        """The records, None without images; `index` holds the images' indices in the order of testing."""
        if not self.batches:
            return None
        found = [torch.cat(parts).cpu().numpy() for parts in zip(*self.batches, strict=True)]
        return Records(index[: len(found[0])].astype(np.int64), *found)


def record(net: nn.Module, data: LightningDataModule, trainer: Trainer, name: str) -> Records:
    """Returns the records of all images that `trainer` tests `net` on, each once, the same on every rank.

    Args:
        net: images → logits (B, classes).
        data: the `sampler.indices()` of its test loader are the indices of this rank's images, in order.
        name: of the model, for messages.

    Raises:
        UsageError: if there are no images, or logits that are not finite.
    """
    recorder = _Recorder(net)
    trainer.test(recorder, datamodule=data, verbose=False)
    loader: Any = trainer.test_dataloaders
    mine = recorder.records(loader.sampler.indices())
    parts: list[Records | None] = [mine]
    if trainer.world_size > 1:
        parts = [None] * trainer.world_size
        torch.distributed.all_gather_object(parts, mine)
    joined = _joined([part for part in parts if part is not None])
    broken = int((~np.isfinite(joined.log_prob)).sum())
    if broken:
        raise UsageError(
            f"{name} gives no finite logits for {broken:,} of {len(joined):,} images: its training diverged, or the "
            f"precision is too low (trainer.precision={trainer.precision}, try 32-true)"
        )
    return joined


def _joined(parts: list[Records]) -> Records:
    if not parts:
        raise UsageError("there are no images to evaluate on: data= names an empty set")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])}
    order = np.argsort(arrays["index"])
    joined = Records(**{name: array[order] for name, array in arrays.items()})
    if (np.diff(joined.index) == 0).any():
        raise RuntimeError("an image was evaluated twice: the processes' shares of the images overlap")
    return joined
