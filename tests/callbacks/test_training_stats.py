"""The logged speed is that of the training steps, without what happens between and after them; with a fake clock."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.utils.data import DataLoader, TensorDataset

from callbacks import checkpointing, training_stats
from callbacks.checkpointing import PeriodicCheckpoint
from callbacks.training_stats import TrainingStats
from infvit.run.checkpoint import AtomicCheckpointIO, newest_first
from tests.data.digits_run import trainer

STEP, ELSEWHERE, IMAGES = 0.05, 0.8, 4
LOADER = DataLoader(TensorDataset(torch.randn(10 * IMAGES, 2)), batch_size=IMAGES)


class Clock:
    """A clock that only `sleep` advances."""

    def __init__(self) -> None:
        self.now = 1.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


CLOCK = Clock()


@pytest.fixture(autouse=True)
def _use_that_clock(monkeypatch):
    clock = SimpleNamespace(perf_counter=CLOCK.read, monotonic=CLOCK.read)
    monkeypatch.setattr(training_stats, "time", clock)
    monkeypatch.setattr(checkpointing, "time", clock)


class Slow(LightningModule):
    """A step takes `STEP` seconds; the first one of a process, and a validation batch, take `ELSEWHERE`."""

    def __init__(self, fails_in: int | None = None) -> None:
        super().__init__()
        self.layer, self.fails_in, self.begun = torch.nn.Linear(2, 1), fails_in, False

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def training_step(self, batch, batch_idx):
        if batch_idx == self.fails_in:
            raise RuntimeError("the run is stopped")
        CLOCK.sleep(STEP if self.begun else ELSEWHERE)
        self.begun = True
        return self.layer(batch[0]).mean()

    def validation_step(self, *_):
        CLOCK.sleep(ELSEWHERE)


def speed(*callbacks, module=None, checkpoint=None, **options):
    """Images per second that a run of one epoch logs, as a fraction of what its steps alone allow."""
    options |= {"limit_val_batches": 1, "num_sanity_val_steps": 0, "callbacks": [TrainingStats(), *callbacks]}
    run = trainer(max_epochs=1, **options)
    run.fit(module or Slow(), LOADER, LOADER, ckpt_path=checkpoint, weights_only=True)
    return float(run.callback_metrics["images_per_second"]) * STEP / IMAGES


@pytest.mark.parametrize("every", [10, 2])
def test_validation_is_not_counted(every):
    assert 0.5 < speed(val_check_interval=every) <= 1


def test_checkpoints_are_not_counted_and_a_run_resumed_within_an_epoch_counts_its_own_steps(tmp_path, monkeypatch):
    real = AtomicCheckpointIO.save_checkpoint

    def slow(self, *arguments, **options):
        CLOCK.sleep(ELSEWHERE / 5)
        real(self, *arguments, **options)

    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", slow)
    each_step = PeriodicCheckpoint(str(tmp_path), every_minutes=0)
    assert 0.5 < speed(each_step) <= 1
    with pytest.raises(RuntimeError, match="stopped"):
        speed(each_step, module=Slow(fails_in=6))
    assert 0.5 < speed(each_step, checkpoint=str(newest_first(tmp_path)[0])) <= 1
