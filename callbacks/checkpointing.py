"""Checkpoints by the clock and on signals: what a kill loses is minutes, what a polite signal loses is nothing."""

import os
import shlex
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, WeightAveraging

from callbacks.training_stats import TrainingStats
from infvit.errors import Interrupted, expect
from infvit.run.checkpoint import NEWEST, AtomicCheckpointIO
from infvit.run.files import print_line

BEFORE_THE_END = (signal.SIGUSR1, signal.SIGUSR2)
"""What SLURM sends some time before it ends a job: SIGUSR1 by `#SBATCH --signal=USR1@90`, SIGUSR2 by submitit."""

SIGNALS = (signal.SIGTERM, *BEFORE_THE_END)

SAVE, STOP = 1, 2


class PeriodicCheckpoint(Callback):
    """Writes a checkpoint every `every_minutes`, when training ends, and when a signal asks the run to stop.

    It is written when a step has ended and its metrics are logged, in the middle of an epoch too, also before or within
    a validation, which the run that goes on begins anew. All processes agree on it, whichever one got the signal.

    Lightning's own handlers are replaced: on SLURM it would save within a step, and answer SIGTERM in one process with
    a broadcast that the others do not expect.

    Args:
        folder: of the checkpoints.
        every_minutes: that a `kill -9` may lose.
    """

    def __init__(self, folder: str, every_minutes: float) -> None:
        expect(every_minutes >= 0, f"checkpoint.every_minutes={every_minutes}", "10, or 0 for every step")
        self.io = AtomicCheckpointIO()
        self.folder, self.seconds = Path(folder), 60 * every_minutes
        self.since = 0.0
        self.signal: int | None = None
        self.trained = False
        self.shared = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = self.io

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        self.since, self.trained = time.monotonic(), True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._listen()
        self.shared = self._least(trainer, sum(trainer.num_test_batches))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Between two batches of an epoch, where no gradients are waiting for others to be added."""
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self._between(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._between(trainer)
            self.shared = self._least(trainer, sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        asked = self._asked(trainer) if trainer.state.fn == "fit" and batch_idx < self.shared else 0
        if asked:
            averages = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
            for average in averages:
                average.on_validation_epoch_end(trainer, pl_module)  # puts the trained weights back into the model
            self._save(trainer)
            if asked == STOP:
                self._stop(trainer)
            for average in averages:
                average.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        if batch_idx < self.shared and self._asked(trainer) == STOP:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The last checkpoint: this callback precedes the one that copies averaged weights into the model."""
        if self.trained:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A run that was killed in its test has nothing left to train, and Lightning leaves out the end of training."""
        if not self.trained:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if not isinstance(callback, ProgressBar):
                    callback.on_train_end(trainer, pl_module)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets Lightning's counters to the end of the last step."""
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]
        if batches["current"]["ready"] != batches["current"]["completed"]:
            batches["is_last_batch"] = False
        for counts in (batches["total"], batches["current"]):  # the next batch counts as ready
            counts["ready"] = counts["completed"]
        if trainer.validating:  # as if stopped in its first step, of which Lightning knows that it must begin anew
            zero = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
            loops["epoch_loop.val_loop.batch_progress"] = {
                "total": zero | {"ready": 1, "started": 1},
                "current": zero,
                "is_last_batch": False,
            }

    def _listen(self) -> None:
        for number in SIGNALS:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.signal = number

    def _between(self, trainer: Trainer) -> None:
        asked = self._asked(trainer)
        if asked:
            self._save(trainer)
        if asked == STOP:
            self._stop(trainer)

    def _asked(self, trainer: Trainer) -> int:
        """What one of the processes was asked for, by a signal or by the clock."""
        mine = STOP if self.signal else SAVE if time.monotonic() - self.since >= self.seconds else 0
        return -self._least(trainer, -mine)

    def _least(self, trainer: Trainer, value: float) -> int:
        """The smallest of all processes' values; all must ask."""
        if trainer.world_size > 1:
            values = torch.tensor(value, device=trainer.strategy.root_device)
            value = float(trainer.strategy.reduce(values, reduce_op="min"))
        return int(value)

    def _save(self, trainer: Trainer) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # what it still computes is of the steps
        began = time.monotonic()
        trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")
        self.since = time.monotonic()
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TrainingStats):
                callback.exclude(self.since - began)

    def _stop(self, trainer: Trainer) -> None:
        """Ends this process; the first one with 128 + the signal's number, as a shell and schedulers expect."""
        number = self.signal or signal.SIGTERM
        failed = self.io.unwritten.get(NEWEST)
        written = f"the checkpoint cannot be written ({failed})" if failed else "the checkpoint is written"
        line = (
            f"{signal.Signals(number).name} after step {trainer.global_step} (epoch {trainer.current_epoch + 1} of "
            f"{trainer.max_epochs}): {written}; go on with: {command()}"
        )
        if trainer.is_global_zero:
            print_line(line)
        # A process that Lightning started must not look failed: Lightning would kill the first one.
        then = requeue if trainer.is_global_zero and number in BEFORE_THE_END else None
        raise Interrupted(line, 128 + number if trainer.is_global_zero else 0, then)


def requeue() -> None:
    """Asks SLURM to run this process's job again, as Lightning's own handler would; nothing outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    if job:
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print(f"job {job} is not requeued ({error}): submit it again", flush=True)


def command() -> str:
    """What goes on with this run, ready to be pasted."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return "the sweep's command, again"
    task = [override for override in hydra.overrides.task if not override.startswith("resume=")]
    where = [override for override in hydra.overrides.hydra if not override.startswith("hydra.mode=")]
    return shlex.join(["python", "train.py", *task, *where, "resume=auto"])
