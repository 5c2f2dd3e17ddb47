"""The progress bar of a run, with the time left of the whole run."""

import datetime
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console

from infvit.run.files import print_line


class RunProgress(RichProgressBar):
    """Shows a Rich bar for each epoch with the run's ETA; without a terminal, a line every tenth of the run instead.

    Args:
        label: printed before each line. Runs that share a terminal would overwrite each other's bars, so a run with a
            label prints lines, too.
    """

    def __init__(self, label: str = "") -> None:
        bar = Console().is_terminal and not label
        super().__init__(refresh_rate=4 if bar else 0)
        self.lines, self.label = not bar, label
        self.first_epoch, self.start = 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.first_epoch, self.start = self._epochs_done(trainer), time.monotonic()

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """Description, a short bar and batches, which leaves room for the run's ETA in 80 columns."""
        columns = super().configure_columns(trainer)[:3]
        columns[1].bar_width = 20
        return columns

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The few values that fit beside the bar in 80 columns."""
        values = trainer.callback_metrics
        shown: dict[str, Any] = {"ETA": self.eta(trainer, self._epochs_done(trainer))} if trainer.training else {}
        if "train/loss_step" in values:
            shown["loss"] = f"{float(values['train/loss_step']):.2f}"
        if "val/top1" in values:
            shown["top-1"] = f"{100 * float(values['val/top1']):.1f}%"
        return shown

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_epoch_end(trainer, pl_module)
        epochs, done = trainer.max_epochs or 1, trainer.current_epoch + 1
        if self.lines and trainer.is_global_zero and (done % max(epochs // 10, 1) == 0 or done == epochs):
            values = {name: float(v) for name, v in trainer.callback_metrics.items()}
            shown = [f"epoch {done:>3}/{epochs}", f"loss {values.get('train/loss_epoch', float('nan')):.3f}"]
            if "val/top1" in values:
                shown.append(f"top-1 {100 * values['val/top1']:.1f}%")
            shown.append(f"ETA {self.eta(trainer, done)}")
            print_line(" · ".join([self.label, *shown] if self.label else shown))

    def eta(self, trainer: Trainer, done: float) -> str:
        """The time left of the run, h:mm:ss, from the epochs and parts of epochs that this process trained."""
        trained = done - self.first_epoch
        if not trained or not trainer.max_epochs:
            return "-:--:--"
        left = (time.monotonic() - self.start) / trained * (trainer.max_epochs - done)
        return str(datetime.timedelta(seconds=round(left)))

    def _epochs_done(self, trainer: Trainer) -> float:
        """Epochs that are trained, with the trained part of the current one."""
        loop, batches = trainer.fit_loop, trainer.num_training_batches
        started = loop.epoch_progress.current.ready > trainer.current_epoch  # the counter of batches is reset later
        part = loop.epoch_loop.batch_progress.current.completed / batches if batches and started else 0
        return trainer.current_epoch + min(part, 1)
