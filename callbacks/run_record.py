"""What a run leaves: `result.json`, written when it starts, after every epoch, and when it ends, however it ends."""

import contextlib
import dataclasses
import math
import os
import shlex
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
from data.datamodule import ImageDataModule
from infvit.cli.entrypoint import one_line
from infvit.cli.run_folder import CHECKPOINTS
from infvit.errors import Interrupted, UsageError
from infvit.measure.cost import cost
from infvit.measure.shape import Shape, shape
from infvit.module import Classifier
from infvit.run.checkpoint import newest_first
from infvit.run.environment import SWEEP_COMMAND, git_commit, hardware, versions
from infvit.run.files import FolderInUseError, FolderLock, print_line, tolerate_write_errors
from infvit.run.identity import config_hash, recipe_hash, settings, variant
from infvit.run.ranks import is_global_zero
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError, score


class RunRecord(Callback):
    """Keeps the run's `result.json` true from the first second: status, identity, curves, metrics, error."""

    def __init__(self, cfg: DictConfig, run_dir: Path) -> None:
        self.path = run_dir / RESULT_FILE
        self.writes = is_global_zero()
        self.unwritten: dict[str, str] = {}
        self.unwritten_of_others: list[dict[str, str]] = []
        self.lock: FolderLock | None = None
        self._claim(run_dir, config_hash(cfg))
        self.goes_on_with = self._seen_by_checkpoints(run_dir)
        self.since = time.monotonic()
        self.speeds: list[float] = []
        # A whole model of timm has a shape of its own, known once it exists.
        size = cfg.size if cfg.model.attention else Shape(None, None, None, None)
        self.result = Result(
            status="running",
            model=cfg.model.name,
            attention=str(OmegaConf.select(cfg, "model.attention._target_", default=cfg.model.name)).rsplit(".", 1)[-1],
            variant=variant(HydraConfig.get().overrides.task),
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
            data_fingerprint=self.goes_on_with,
            loader="",
            precision=str(cfg.trainer.precision),
            seed=cfg.seed,
            hardware=hardware(),
            versions=versions(),
            git_commit=git_commit(),
            command=shlex.join(["python", "train.py", *HydraConfig.get().overrides.task]),
            sweep_command=os.environ.get(SWEEP_COMMAND, "") if HydraConfig.get().mode == RunMode.MULTIRUN else "",
            started=datetime.now(timezone.utc).isoformat(timespec="seconds"),
            run_dir=str(run_dir),
            settings=settings(cfg),
            extra={"config_hash": config_hash(cfg)},
        )
        self.write()
        self._must_be_there("is not started")

    def __enter__(self) -> "RunRecord":
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """One line for a mistake of use, the traceback for any other error; finished, unless it diverged.

        A run that a signal ended is interrupted: the same command goes on.
        """
        if error is not None:
            self.result.status = "interrupted" if isinstance(error, Interrupted) else "failed"
            self.result.error = one_line(error) or "".join(traceback.format_exception(error))
        elif self.result.status == "running":
            self.result.status = "finished"
            self.result.metrics |= {k: v for k, v in self.result.curves[-1].items() if k.startswith("val/")}
        self.write()
        if self.lock is not None:
            self.lock.release()
        top1 = score(self.result)
        if self.writes and error is None:
            images = "test" if "test/top1" in self.result.metrics else "validation"
            outcome = self.result.error if top1 is None else f"{images} top-1 {100 * top1:.2f}%"
            print_line(f"{self.result.status}: {outcome} in {self.result.seconds:.0f} s; {self.path}")
        unwritten = {name: why for each in [self.unwritten, *self.unwritten_of_others] for name, why in each.items()}
        if unwritten:
            reasons = ", ".join(dict.fromkeys(unwritten.values()))
            names = ", ".join(unwritten)
            print_line(f"not written, or not to the end: {names} ({reasons}): make room in {self.path.parent}")
        finish_wandb(int(error is not None), isinstance(error, Interrupted))
        if isinstance(error, Interrupted) and error.afterwards is not None:
            error.afterwards()
        if error is None:
            self._must_be_there(f"is {self.result.status}, and its end is not recorded")

    def _must_be_there(self, what: str) -> None:
        why = self.unwritten.get(RESULT_FILE)
        if why:
            if self.lock is not None:
                self.lock.release()
            raise UsageError(
                f"the run {what}: {self.path} cannot be written ({why}); make room, and the same command with "
                "resume=auto goes on from the newest checkpoint"
            )

    def _claim(self, run_dir: Path, configuration: str) -> None:
        """Makes the folder this run's; UsageError if another one runs in it or has left its checkpoints there."""
        if not self.writes:
            return
        try:
            self.lock = FolderLock(run_dir)
        except FolderInUseError as holder:
            raise UsageError(
                f"{run_dir} is the folder of a run that is running ({holder}): wait for its end, or give another one "
                "with hydra.run.dir=DIR"
            ) from holder
        with contextlib.suppress(FileNotFoundError, UnreadableResultError):
            found = Result.read(self.path).extra.get("config_hash")
            if found != configuration and newest_first(run_dir / CHECKPOINTS):
                self.lock.release()
                raise UsageError(
                    f"{run_dir} is the folder of a run of another configuration, {found}, and this one is "
                    f"{configuration}: give another folder with hydra.run.dir=DIR"
                )

    def _seen_by_checkpoints(self, run_dir: Path) -> str:
        """The fingerprint of their images, "" without any; every process looks, so that none goes on alone."""
        with contextlib.suppress(UnreadableResultError):
            if newest_first(run_dir / CHECKPOINTS):
                return Result.read(self.path).data_fingerprint
        return ""

    def describe(self, module: Classifier, data: ImageDataModule) -> None:
        """Adds what is known once model and data exist: shape, counts, classes, fingerprint.

        UsageError if a run that goes on has other images now.
        """
        if self.goes_on_with not in ("", data.fingerprint):
            raise UsageError(
                f"{self.result.run_dir} was trained on {data.name}#{self.goes_on_with}, and what is found now is "
                f"#{data.fingerprint}: give it those images to go on, or another folder with hydra.run.dir=DIR"
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
        """Says in a few lines what is about to run."""
        r = self.result
        flops = "FLOPs not known" if r.flops_forward is None else f"{r.flops_forward / 1e9:,.3g} GFLOPs"
        if self.writes:
            print(
                f"{r.model}: {r.depth or '?'} layers, {r.parameters:,} parameters, "
                f"{flops} forward per image at {r.image_size} px\n"
                f"recipe {r.recipe}#{r.recipe_hash}: {r.epochs} epochs, batch {r.batch_size}, "
                f"learning rate {module.lr:.3g} ({module.base_lr:.3g} × {r.batch_size} / 512)\n"
                f"data {r.data}#{r.data_fingerprint}, {r.loader} loader; seed {r.seed}\n"
                f"run folder {r.run_dir}",
                flush=True,
            )

    def write(self) -> None:
        """Writes the file (rank 0 alone); one that finds no room is written the next time."""
        if self.writes:
            self.result.seconds = round(time.monotonic() - self.since, 2)
            with tolerate_write_errors(RESULT_FILE, "the run continues, the one before stays", self.unwritten):
                self.result.write(self.path)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            owners = [*trainer.callbacks, *trainer.loggers, trainer.strategy.checkpoint_io]  # type: ignore[attr-defined]
            self.unwritten_of_others = [o.unwritten for o in owners if o is not self and hasattr(o, "unwritten")]
            # By these W&B groups its runs into the rows of our table, and sets accuracy against cost.
            cost_of = {name: getattr(self.result, name) for name in ("parameters", "flops_forward", "flops_training")}
            row = " ".join(filter(None, (self.result.model, self.result.variant)))
            for logger in trainer.loggers:
                logger.log_hyperparams({"row": row, **cost_of})
        self.result.hardware |= {"devices": trainer.world_size, "threads": torch.get_num_threads()}

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Runs after validation, so the epoch's row is whole."""
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        loss = metrics.get("train/loss_epoch", math.nan)
        optimizer = trainer.optimizers[0]
        self.result.curves.append(
            {"epoch": trainer.current_epoch, "train/loss": loss, "lr": optimizer.param_groups[0]["lr"]}
            | {name: value for name, value in metrics.items() if name.startswith("val/")}
            # 24 blocks of 16 heads would fill the file.
            | {f"gamma/{block}": statistics.fmean(heads) for block, heads in enumerate(gammas(pl_module))}
        )
        if "images_per_second" in metrics:
            self.speeds.append(metrics["images_per_second"])
            self.result.train_images_per_second = round(statistics.median(self.speeds), 1)
        if not math.isfinite(loss) and self.result.status == "running":
            self.diverged(f"the training loss became {loss} in epoch {trainer.current_epoch}")
            trainer.should_stop = True
        self.write()

    def diverged(self, line: str) -> None:
        """To be called by whoever ends the training because it leads nowhere."""
        self.result.status, self.result.error = "diverged", line

    def failed(self, line: str) -> None:
        """To be called by whoever ends this process without an exception."""
        self.result.status, self.result.error = "failed", line
        self.write()

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.result.metrics |= {name: v for name, v in metrics.items() if name.startswith(("val/", "test/"))}

    def state_dict(self) -> dict[str, Any]:
        """The curves and the time travel in the checkpoint, so that a resumed run shows them whole."""
        seconds = time.monotonic() - self.since
        return {"curves": self.result.curves, "speeds": self.speeds, "seconds": seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.result.curves, self.speeds = state_dict["curves"], state_dict["speeds"]
        self.since -= state_dict["seconds"]
