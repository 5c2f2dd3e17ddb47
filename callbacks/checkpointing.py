"""Checkpoints every few minutes, at the end of training, and on Ctrl-C and the signals that end a job."""

import os
import signal
import subprocess
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, WeightAveraging

from callbacks.run_record import RunRecord
from callbacks.training_stats import TrainingStats
from infvit.cli.run_folder import resume_command
from infvit.errors import Interrupted, expect
from infvit.run.checkpoint import NEWEST, AtomicCheckpointIO
from infvit.run.files import print_line
from infvit.run.ranks import is_global_zero

REQUEUE_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2)
"""Sent by SLURM before a job's time is over: SIGUSR1 by `#SBATCH --signal=USR1@90`, SIGUSR2 by submitit."""

FIRST_SIGINT = b"\nSIGINT: the run ends with a checkpoint after this step; another SIGINT ends it at once\n"

SAVE, STOP = 1, 2


class PeriodicCheckpoint(Callback):
    """Saves a checkpoint every `every_minutes`, at the end of training, and on a signal, which then ends the run.

    Ctrl-C, SIGINT, is such a signal; a second one ends the process at once.

    It is saved between two steps, when the metrics of the first are logged: within an epoch, before a validation, and
    within a validation, which the resumed run repeats. All ranks agree on it, whichever of them received the signal.

    Lightning's own signal handlers are replaced: on SLURM they save within a step, and on SIGTERM one rank starts a
    broadcast that the others do not expect.

    Args:
        folder: of the checkpoints.
        every_minutes: what a `kill -9` may lose.
    """

    def __init__(self, folder: str, every_minutes: float) -> None:
        expect(every_minutes >= 0, f"checkpoint.every_minutes={every_minutes}", "10, or 0 for every step")
        self.folder, self.seconds = Path(folder), 60 * every_minutes
        self.io = AtomicCheckpointIO()
        self.saved_at = 0.0
        self.signal: int | None = None
        self.trained = False
        self.common_batches = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        trainer.strategy.checkpoint_io = self.io
        self.io.buffers = {name for name, _ in pl_module.named_buffers()}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle_signals()
        self.saved_at, self.trained = time.monotonic(), True

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._handle_signals()
        self.common_batches = self._min(trainer, sum(trainer.num_test_batches))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx and batch_idx % trainer.accumulate_grad_batches == 0:
            self._save_if_requested(trainer)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "fit":
            self._save_if_requested(trainer)
            self.common_batches = self._min(trainer, sum(trainer.num_val_batches))

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        request = self._request(trainer) if trainer.state.fn == "fit" and batch_idx < self.common_batches else 0
        if request:
            averages = [c for c in trainer.callbacks if isinstance(c, WeightAveraging)]  # type: ignore[attr-defined]
            for average in averages:
                average.on_validation_epoch_end(trainer, pl_module)  # copies the trained weights back into the model
            self._save(trainer)
            if request == STOP:
                self._stop(trainer)
            for average in averages:
                average.on_validation_epoch_start(trainer, pl_module)

    def on_test_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        if batch_idx < self.common_batches and self._request(trainer) == STOP:
            self._stop(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Saves the trained weights: this callback precedes the one that copies averaged weights into the model."""
        if self.trained:
            self._save(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Makes up for `on_train_end`, which Lightning skips if nothing is left to train: the run ended in its test."""
        if not self.trained:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if not isinstance(callback, ProgressBar):
                    callback.on_train_end(trainer, pl_module)
        if self._request(trainer) == STOP:  # received after the last step
            self._stop(trainer)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Sets Lightning's counters of batches to the end of the last step."""
        loops = checkpoint["loops"]["fit_loop"]
        batches = loops["epoch_loop.batch_progress"]
        if batches["current"]["ready"] != batches["current"]["completed"]:
            batches["is_last_batch"] = False
        for counts in (batches["total"], batches["current"]):  # the next batch counts as ready
            counts["ready"] = counts["completed"]
        if trainer.validating:  # as if stopped in the first batch of validation, which Lightning starts again
            zero = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
            loops["epoch_loop.val_loop.batch_progress"] = {
                "total": zero | {"ready": 1, "started": 1},
                "current": zero,
                "is_last_batch": False,
            }

    def _handle_signals(self) -> None:
        def handle(number: int, _frame: FrameType | None) -> None:
            self.signal = number
            if number == signal.SIGINT:
                signal.signal(number, signal.SIG_DFL)
                if is_global_zero():
                    os.write(2, FIRST_SIGINT)  # the signal may have interrupted a print

        for number in (signal.SIGTERM, signal.SIGINT, *REQUEUE_SIGNALS):
            if number != signal.SIGINT or signal.getsignal(number) != signal.SIG_IGN:  # as a shell does for "&"
                signal.signal(number, handle)

    def _save_if_requested(self, trainer: Trainer) -> None:
        request = self._request(trainer)
        if request:
            self._save(trainer)
        if request == STOP:
            self._stop(trainer)

    def _request(self, trainer: Trainer) -> int:
        """STOP if any rank received a signal, else SAVE if it is time, else 0."""
        own = STOP if self.signal else SAVE if time.monotonic() - self.saved_at >= self.seconds else 0
        return -self._min(trainer, -own)

    def _min(self, trainer: Trainer, value: float) -> int:
        """All-reduce (min) over ranks; collective."""
        if trainer.world_size == 1:
            return int(value)
        values = torch.tensor(value, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(values, reduce_op="min"))

    def _save(self, trainer: Trainer) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # queued work belongs to the steps
        start = time.monotonic()
        trainer.save_checkpoint(self.folder / f"step{trainer.global_step}.ckpt")
        self.saved_at = time.monotonic()
        not_finite = trainer.strategy.broadcast(self.io.not_finite)
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, TrainingStats):
                callback.exclude(self.saved_at - start)
            if isinstance(callback, RunRecord) and not_finite:
                callback.diverged(f"{not_finite} is not finite after step {trainer.global_step}")
                trainer.should_stop = True

    def _stop(self, trainer: Trainer) -> None:
        """Ends this process; rank zero with 128 + the signal's number, as shells and schedulers expect."""
        number = self.signal or signal.SIGTERM
        failure = self.io.unwritten.get(NEWEST) or (self.io.not_finite and f"{self.io.not_finite} is not finite")
        written = f"the checkpoint cannot be written ({failure})" if failure else "the checkpoint is written"
        line = (
            f"{signal.Signals(number).name} after step {trainer.global_step} (epoch {trainer.current_epoch + 1} of "
            f"{trainer.max_epochs}): {written}; resume with: {resume_command()}"
        )
        if not trainer.is_global_zero:  # Lightning kills rank zero when a process that it launched fails
            raise Interrupted(line, 0)
        print_line(line)
        raise Interrupted(line, 128 + number, requeue if number in REQUEUE_SIGNALS else None)


def requeue() -> None:
    """Requeues the SLURM job of this process, as Lightning's own handler does; nothing outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    job = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")
    if job:
        try:
            subprocess.run(["scontrol", "requeue", job], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            print_line(f"job {job} is not requeued ({error}): submit it again")
