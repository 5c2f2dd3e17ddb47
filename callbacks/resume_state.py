"""What a run that goes on would otherwise lose: means over the epoch that was begun, and the places of its logs."""

import csv
import io
import os
from pathlib import Path
from typing import Any, cast

import torch
import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from torch import Tensor

from callbacks.checkpointing import Checkpoints
from infvit.run import files as disk
from infvit.run.files import atomic_write


class AtomicCSVWriter(ExperimentWriter):
    """Writes rows whole or not at all: those that find no room are written the next time.

    Lightning's own deletes the file that is there; a process killed before it goes on would have lost it.
    """

    whole = 0

    def _check_log_dir_exists(self) -> None:
        """The file stays until `ResumableCSVLogger.go_on`."""

    def save(self) -> None:
        path, known = Path(self.metrics_file_path), list(self.metrics_keys)
        self.whole = path.stat().st_size if path.is_file() else 0
        try:
            super().save()
        except OSError:
            self.metrics_keys = known
            if self.whole:
                os.truncate(path, self.whole)
            else:
                path.unlink(missing_ok=True)
            raise

    def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
        path, text = Path(self.metrics_file_path), io.StringIO()
        writer = csv.DictWriter(text, fieldnames)
        writer.writeheader()
        with path.open(newline="") as file:
            writer.writerows(csv.DictReader(file))
        atomic_write(path, text.getvalue())
        self.whole = path.stat().st_size


class ResumableCSVLogger(CSVLogger):
    """Lightning's CSV logger with a way to keep the rows of before. A disk without room costs no more than a line."""

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        if self._experiment is None:
            self._experiment = AtomicCSVWriter(self.log_dir)
        return cast(AtomicCSVWriter, self._experiment)

    def save(self) -> None:
        with disk.tried(ExperimentWriter.NAME_METRICS_FILE, "its rows wait for room"):
            super().save()

    def log_hyperparams(self, *settings: Any, **named: Any) -> None:
        with disk.tried(ExperimentWriter.NAME_HPARAMS_FILE, "config.yaml says the same"):
            super().log_hyperparams(*settings, **named)

    def rows(self) -> int:
        """Rows of metrics so far, all of them written but where there is no room."""
        self.save()
        path = Path(self.experiment.metrics_file_path)
        written = len(path.read_text().splitlines()) - 1 if path.is_file() else 0
        return written + len(self.experiment.metrics)

    def go_on(self, rows: int) -> None:
        """Keeps the first `rows` rows of the file that is there, if there is one, and no other."""
        path = Path(self.experiment.metrics_file_path)
        if not rows:
            path.unlink(missing_ok=True)
        elif path.is_file():
            kept = path.read_text().splitlines(keepends=True)[: rows + 1]
            atomic_write(path, "".join(kept))
            self.experiment.metrics_keys = kept[0].strip().split(",")


class ResumeState(Callback):
    """Keeps in the checkpoint, and puts back, the running means of `self.log(..., on_epoch=True)` and where logs ended.

    Lightning's checkpoints leave the means out: the epoch's training loss would be that of its second part alone.
    """

    def __init__(self) -> None:
        self.found: dict[str, Any] | None = None
        self.begun: list[dict[str, Any]] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        logs = [logger for logger in trainer.loggers if isinstance(logger, ResumableCSVLogger)]
        rows = max((log.rows() for log in logs if trainer.is_global_zero), default=0)
        step = wandb.run.step if wandb.run is not None else 0
        checkpoint["continuity"] = {"means": _means(trainer), "csv_rows": rows, "wandb_step": step}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.found = checkpoint.get("continuity")
        if trainer.is_global_zero:
            print(f"goes on after step {checkpoint['global_step']}, from {trainer.ckpt_path}", flush=True)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """For an epoch of which only the end is left."""
        self.begun = self.found["means"] if self.found is not None else []
        _add(trainer, self.begun)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Once more: at a process's first batch Lightning begins its means anew."""
        _add(trainer, self.begun)
        self.begun = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.begun = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Here, because this callback stands in front of the one that puts averaged weights in the model's place."""
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, Checkpoints):
                callback.save_the_end(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Before training starts: a run that was killed in its test does not train any more."""
        if not trainer.is_global_zero:
            return
        found = self.found or {"csv_rows": 0, "wandb_step": 0}
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.go_on(found["csv_rows"])
            # Offline W&B counts from 0 again under the same name; online it knows where it was.
            if isinstance(logger, WandbLogger) and logger.experiment.step < found["wandb_step"]:
                logger.experiment.log({}, step=found["wandb_step"])


def _means(trainer: Trainer) -> list[dict[str, Any]]:
    """Sum and weight of every mean over the training epoch so far, of each process."""
    means = []
    for metric in trainer.fit_loop.epoch_loop._results.result_metrics:
        meta = metric.meta
        if metric.is_tensor and meta.on_epoch and meta.is_mean_reduction and not metric.has_reset:
            each = torch.zeros(trainer.world_size, 2, dtype=torch.float64, device=metric.value.device)
            each[trainer.global_rank] = torch.stack([metric.value.double(), metric.cumulated_batch_size.double()])
            each = cast(Tensor, trainer.strategy.reduce(each, reduce_op="sum"))
            names = {"fx": meta.fx, "name": meta.name, "prog_bar": meta.prog_bar, "logger": meta.logger}
            means.append(names | {"on_step": meta.on_step, "sync_dist": meta.sync.should, "each": each.tolist()})
    return means


def _add(trainer: Trainer, means: list[dict[str, Any]]) -> None:
    """Each process its own part; the first one all of it, if there are others now than there were."""
    results, device = trainer.fit_loop.epoch_loop._results, trainer.strategy.root_device
    for mean in means:
        each = torch.tensor(mean["each"], dtype=torch.float64)
        same = len(each) == trainer.world_size
        total, weight = each[trainer.global_rank] if same else each.sum(0) * (trainer.global_rank == 0)
        key = f"{mean['fx']}.{mean['name']}"
        if key not in results:
            known = {name: mean[name] for name in ("fx", "name", "prog_bar", "logger", "on_step", "sync_dist")}
            zero, sync = torch.zeros((), device=device), trainer.strategy.reduce
            results.log(**known, value=zero, on_epoch=True, sync_dist_fn=sync, batch_size=0)
        results[key].value += total.to(results[key].value)
        results[key].cumulated_batch_size += weight.to(results[key].cumulated_batch_size)
