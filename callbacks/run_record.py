"""Keeps `result.json`: written when a run starts, after every epoch, and when it ends for whatever reason."""

import contextlib
import dataclasses
import math
import os
import shlex
import signal
import statistics
import time
import traceback
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf

from callbacks.loggers import finish_wandb
from callbacks.training_stats import gammas
from infvit.cli.entrypoint import one_line
from infvit.cli.run_folder import CHECKPOINTS, run_command
from infvit.errors import Interrupted, UsageError
from infvit.measure.cost import cost
from infvit.measure.shape import Shape, shape
from infvit.module import Classifier
from infvit.run.checkpoint import newest_first
from infvit.run.environment import SWEEP_COMMAND, git_changes, git_commit, hardware, versions
from infvit.run.files import FolderInUseError, FolderLock, atomic_write, print_line, tolerate_write_errors
from infvit.run.identity import config_hash, recipe_hash, settings, variant
from infvit.run.ranks import is_global_zero
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError, score

CODE_DIFF = "code.diff"
"""What differs from the commit that `result.json` names."""


class RunRecord(Callback):
    """Keeps the run's `result.json` up to date: status, identity, curves, metrics, error. Only rank zero writes.

    As a context manager around the run it records how the run ends, and ends its W&B run.

    Raises:
        UsageError: the folder belongs to another run, or `result.json` cannot be written.
    """

    def __init__(self, cfg: DictConfig, run_dir: Path) -> None:
        self.path = run_dir / RESULT_FILE
        self.writes = is_global_zero()
        self.unwritten: dict[str, str] = {}
        self.unwritten_by_others: list[dict[str, str]] = []
        configuration = config_hash(cfg)
        self.lock = self._lock_folder(configuration) if self.writes else None
        self.start = time.monotonic()
        self.speeds: list[float] = []
        self.resumed_data = ""
        with contextlib.suppress(UnreadableResultError):  # on every rank, so that all end alike
            if newest_first(run_dir / CHECKPOINTS):
                self.resumed_data = Result.read(self.path).data_fingerprint
        hydra = HydraConfig.get()
        # The shape of a timm model is known when it exists.
        size = cfg.size if cfg.model.attention else Shape(None, None, None, None)
        self.result = Result(
            status="running",
            model=cfg.model.name,
            attention=str(OmegaConf.select(cfg, "model.attention._target_", default=cfg.model.name)).rsplit(".", 1)[-1],
            variant=variant(hydra.overrides.task, cfg.init),
            depth=cfg.backbone.depth if cfg.model.attention else None,
            dim=size.dim,
            heads=size.heads,
            patch=size.patch,
            image_size=cfg.size.image_size,
            num_classes=None,
            recipe=cfg.recipe.name,
            recipe_hash=recipe_hash(cfg.recipe),
            epochs=cfg.trainer.max_epochs,
            batch_size=cfg.recipe.batch_size,
            data=cfg.data.name,
            data_fingerprint=self.resumed_data,
            data_root=os.path.abspath(root) if (root := OmegaConf.select(cfg, "data.root")) else "",
            loader="",
            precision=str(cfg.trainer.precision),
            seed=cfg.seed,
            hardware=hardware(),
            versions=versions(),
            git_commit=git_commit(),
            command=shlex.join(run_command()),
            sweep_command=os.environ.get(SWEEP_COMMAND, "") if hydra.mode == RunMode.MULTIRUN else "",
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            run_dir=str(run_dir),
            settings=settings(cfg),
            code=configuration.partition("-")[2],
            extra={"config_hash": configuration},
        )
        self.write()
        if self.writes and (changes := git_changes()):
            with tolerate_write_errors(CODE_DIFF, "the run continues without it", self.unwritten):
                atomic_write(run_dir / CODE_DIFF, changes)
        self._check_written("is not started")

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Records the end: a one-line error or a traceback, interrupted by a signal, diverged, or finished."""
        if isinstance(error, Interrupted):
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # another one ends the process at once, while W&B uploads too
        if error is not None:
            self.result.status = "interrupted" if isinstance(error, Interrupted) else "failed"
            self.result.error = one_line(error) or "".join(traceback.format_exception(error))
        elif self.result.status == "running":
            self.result.status = "finished"
            self.result.metrics |= {k: v for k, v in self.result.curves[-1].items() if k.startswith("val/")}
        self.write()
        if self.lock is not None:
            self.lock.release()
        if self.writes:
            self._print_end(error)
        finish_wandb(int(error is not None), isinstance(error, Interrupted))
        if isinstance(error, Interrupted) and error.afterwards is not None:
            error.afterwards()
        if error is None:
            self._check_written(f"is {self.result.status}, and its end is not recorded")

    def _print_end(self, error: BaseException | None) -> None:
        top1 = score(self.result)
        if error is None:
            images = "test" if "test/top1" in self.result.metrics else "validation"
            outcome = self.result.error if top1 is None else f"{images} top-1 {100 * top1:.2f}%"
            print_line(f"{self.result.status}: {outcome} in {self.result.seconds:.0f} s; {self.path}")
        unwritten = dict(item for files in (self.unwritten, *self.unwritten_by_others) for item in files.items())
        if unwritten:
            names, reasons = ", ".join(unwritten), ", ".join(dict.fromkeys(unwritten.values()))
            print_line(f"not written, or not to the end: {names} ({reasons}): make room in {self.path.parent}")

    def _check_written(self, state: str) -> None:
        reason = self.unwritten.get(RESULT_FILE)
        if reason:
            if self.lock is not None:
                self.lock.release()
            raise UsageError(
                f"the run {state}: {self.path} cannot be written ({reason}); make room, and the same command with "
                "resume=auto resumes from the newest checkpoint"
            )

    def _lock_folder(self, configuration: str) -> FolderLock:
        """Locks the folder; UsageError if another run uses it or left checkpoints of another configuration there."""
        folder = self.path.parent
        try:
            lock = FolderLock(folder)
        except FolderInUseError as holder:
            raise UsageError(
                f"{folder} is the folder of a run that is running ({holder}): wait for its end, or give another one "
                "with hydra.run.dir=DIR"
            ) from holder
        with contextlib.suppress(UnreadableResultError):
            found = Result.read(self.path).extra.get("config_hash")
            if found != configuration and newest_first(folder / CHECKPOINTS):
                lock.release()
                other = "code" if str(found)[:8] == configuration[:8] else "configuration"
                raise UsageError(
                    f"{folder} is the folder of a run of another {other}, {found}, and this one is "
                    f"{configuration}: give another folder with hydra.run.dir=DIR"
                )
        return lock

    def describe(self, module: Classifier, data: Any) -> None:
        """Adds what is known when the model and its data module exist: shape, parameters, FLOPs, classes, fingerprint.

        Raises:
            UsageError: a resumed run would train on other images than before.
        """
        if self.resumed_data not in ("", data.fingerprint):
            raise UsageError(
                f"{self.result.run_dir} was trained on {data.name}#{self.resumed_data}, but these images are "
                f"#{data.fingerprint}: resume it with the same images, or give another folder with hydra.run.dir=DIR"
            )
        counted = cost(module.net, self.result.image_size)
        self.result = dataclasses.replace(
            self.result,
            **dataclasses.asdict(shape(module.net)),
            parameters=counted.parameters,
            macs_forward=counted.macs_forward,
            flops_forward=counted.flops_forward,
            flops_training=counted.flops_training,
            num_classes=data.num_classes,
            data_fingerprint=data.fingerprint,
            loader=data.loader_name,
        )
        self.write()

    def announce(self, module: Classifier) -> None:
        """Prints model, recipe, data and folder of the run."""
        r = self.result
        flops = "FLOPs not known" if r.flops_forward is None else f"{r.flops_forward / 1e9:,.3g} GFLOPs"
        trained = sum(p.numel() for p in module.net.parameters() if p.requires_grad)
        if self.writes:
            print_line(
                f"{r.model}: {r.depth or '?'} layers, {r.parameters:,} parameters, "
                f"{'' if trained == r.parameters else f'{trained:,} of them trained, '}"
                f"{flops} forward per image at {r.image_size} px\n"
                f"recipe {r.recipe}#{r.recipe_hash}: {r.epochs} epochs, batch {r.batch_size}, "
                f"learning rate {module.lr:.3g} ({module.base_lr:.3g} × {r.batch_size} / 512)\n"
                f"data {r.data}#{r.data_fingerprint}, {r.loader} loader; seed {r.seed}\n"
                f"run folder {r.run_dir}"
            )

    def write(self) -> None:
        """Writes `result.json`; if the disk has no room, the next write tries again."""
        if self.writes:
            self.result.seconds = round(time.monotonic() - self.start, 2)
            with tolerate_write_errors(RESULT_FILE, "the run continues, the one before stays", self.unwritten):
                self.result.write(self.path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            owners = [*trainer.callbacks, *trainer.loggers, trainer.strategy.checkpoint_io]  # type: ignore[attr-defined]
            self.unwritten_by_others = [o.unwritten for o in owners if o is not self and hasattr(o, "unwritten")]
            # W&B groups runs into rows of the comparison and plots accuracy against cost by these.
            costs = {name: getattr(self.result, name) for name in ("parameters", "flops_forward", "flops_training")}
            row = " ".join(filter(None, (self.result.model, self.result.variant)))
            for logger in trainer.loggers:
                logger.log_hyperparams({"row": row, **costs})
        self.result.hardware |= {"devices": trainer.world_size, "threads": torch.get_num_threads()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds the epoch, whose validation is over, to the curves."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        loss, group = metrics.get("train/loss_epoch", math.nan), trainer.optimizers[0].param_groups[0]
        self.result.curves.append(
            {"epoch": trainer.current_epoch, "train/loss": loss, "lr": group["lr"] / group.get("lr_scale", 1.0)}
            | {name: value for name, value in metrics.items() if name.startswith("val/")}
            # means over heads: 24 blocks of 16 heads would fill the file
            | {f"gamma/{block}": statistics.fmean(heads) for block, heads in enumerate(gammas(pl_module))}
        )
        if "images_per_second" in metrics:
            self.speeds.append(metrics["images_per_second"])
            self.result.train_images_per_second = round(statistics.median(self.speeds), 1)
        if self._check_finite({"train/loss": loss, **metrics}, f"in epoch {trainer.current_epoch}"):
            trainer.should_stop = True
        self.write()

    def _check_finite(self, metrics: dict[str, float], when: str) -> bool:
        """Whether a loss is not finite: the outputs are not, and the run has diverged."""
        bad = {k: v for k, v in metrics.items() if k.endswith("/loss") and not math.isfinite(v)}
        for name, value in bad.items():
            self.diverged(f"{name} became {value} {when}")
        return bool(bad)

    def diverged(self, line: str) -> None:
        """Marks the run as diverged, for the first reason; the caller ends the training."""
        if self.result.status == "running":
            self.result.status, self.result.error = "diverged", line

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.result.metrics |= {name: v for name, v in metrics.items() if name.startswith(("val/", "test/"))}
        self._check_finite(metrics, "on the test images")

    def state_dict(self) -> dict[str, Any]:
        """The curves and the time, which a resumed run continues."""
        seconds = time.monotonic() - self.start
        return {"curves": self.result.curves, "speeds": self.speeds, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.result.curves, self.speeds = state_dict["curves"], state_dict["speeds"]
        self.start -= state_dict["seconds"]
