"""The LightningModule of a classifier: loss, optimizer, schedule and metrics, the same for every backbone."""

import math
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from infvit.errors import UsageError, expect
from infvit.weights.freeze import freeze as freeze_parameters

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Trains `net` on (images (B, 3, h, w), labels (B,)) and measures top-1, top-5 and loss.

    Args:
        net: images → logits (B, classes).
        num_classes: number of classes.
        optimizer: `optimizer(net, lr=...)`; timm's factory excludes norms, biases, positions and gamma from decay.
        schedule: `schedule(optimizer, warmup=steps, total=steps)`, such as infvit.schedule.warmup_cosine.
        epochs: length of the schedule.
        batch_size: images per optimizer step, over all devices.
        base_lr: learning rate for 512 images per step; the learning rate is base_lr · batch_size / 512.
        warmup_epochs: length of the schedule's warm-up.
        label_smoothing: of the targets, mixed or not.
        mixup: `mixup(num_classes=...)` returns timm's Mixup/CutMix; None for none.
        freeze, train_only: patterns of the names of what is not trained, or of all that is (`infvit.weights.freeze`).

    Raises:
        UsageError: if a value is out of range.
    """

    def __init__(
        self,
        net: nn.Module,
        num_classes: int,
        optimizer: Callable[..., torch.optim.Optimizer],
        schedule: Callable[..., LRScheduler],
        epochs: int,
        batch_size: int,
        base_lr: float,
        warmup_epochs: int = 0,
        label_smoothing: float = 0.0,
        mixup: Callable[..., Callable[[Tensor, Tensor], Batch]] | None = None,
        freeze: Sequence[str] = (),
        train_only: Sequence[str] = (),
    ) -> None:
        super().__init__()
        expect(num_classes >= 2, f"num_classes={num_classes}", "2 or more, e.g. two folders in each split of data.root")
        expect(epochs >= 1, f"epochs={epochs}", "1 or more")
        expect(batch_size >= 1, f"batch_size={batch_size}", "1 image or more")
        expect(0 <= base_lr < math.inf, f"base_lr={base_lr}", "a learning rate from 0")
        expect(warmup_epochs >= 0, f"warmup_epochs={warmup_epochs}", "0 or more")
        expect(
            warmup_epochs < epochs,
            f"warmup_epochs={warmup_epochs} of epochs={epochs}",
            "a warm-up that ends before the run does, e.g. warmup_epochs=0",
        )
        expect(0 <= label_smoothing <= 1, f"label_smoothing={label_smoothing}", "0 to 1")
        freeze_parameters(net, freeze, train_only)
        self.net = net
        self.base_lr, self.lr = base_lr, base_lr * batch_size / 512
        self.epochs, self.warmup_epochs, self.label_smoothing = epochs, warmup_epochs, label_smoothing
        self.make_optimizer, self.make_schedule = optimizer, schedule
        self.mixup = mixup(num_classes=num_classes) if mixup is not None else None
        metrics = MetricCollection(
            {
                "top1": MulticlassAccuracy(num_classes, average="micro"),
                "top5": MulticlassAccuracy(num_classes, average="micro", top_k=min(5, num_classes)),
            }
        )
        # Exact over all images and ranks, not a mean of batch means.
        self.metrics = nn.ModuleDict({stage: metrics.clone(prefix=f"{stage}/") for stage in ("val", "test")})
        self.losses = nn.ModuleDict({stage: MeanMetric(nan_strategy="disable") for stage in ("val", "test")})
        self.train_loss = MeanMetric(nan_strategy="disable")  # of the epoch so far; `ResumeState` keeps it
        self.finite_loss: Tensor | None = None

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, h, w) → logits (B, classes)."""
        return self.net(images)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        images, targets = batch
        if self.mixup is not None:
            images, targets = self.mixup(images, targets)
        loss = F.cross_entropy(self(images), targets, label_smoothing=self.label_smoothing)
        # A step that is not finite is skipped: the epoch's mean counts the last finite loss instead.
        value = loss.detach()
        before = torch.full_like(value, torch.nan) if self.finite_loss is None else self.finite_loss
        self.finite_loss = value.where(value.isfinite(), before)
        self.train_loss.update(self.finite_loss, weight=len(images))
        self.log("train/loss_step", self.finite_loss, sync_dist=True)
        self.log("train/loss_epoch", self.train_loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("val", batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._measure("test", batch)

    def on_validation_epoch_end(self) -> None:
        self._report("val")

    def on_test_epoch_end(self) -> None:
        self._report("test")

    def _measure(self, stage: str, batch: Batch) -> None:
        images, labels = batch
        logits = self(images).float()
        metrics, loss = self._scores(stage)
        metrics.update(logits, labels)
        loss.update(F.cross_entropy(logits, labels, reduction="none"))

    def _scores(self, stage: str) -> tuple[MetricCollection, MeanMetric]:
        return cast(MetricCollection, self.metrics[stage]), cast(MeanMetric, self.losses[stage])

    def _report(self, stage: str) -> None:
        metrics, loss = self._scores(stage)
        self.log_dict({**metrics.compute(), f"{stage}/loss": loss.compute()}, prog_bar=stage == "val")
        metrics.reset()
        loss.reset()

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        try:
            optimizer = self.make_optimizer(self.net, lr=self.lr)
        except Exception as error:  # timm and torch raise many types
            raise UsageError(f"the optimizer cannot be made with lr={self.lr:.3g} and its settings: {error}") from error
        # The length of the schedule is the recipe's: a trainer that stops early has the same curve up to there.
        self.trainer.fit_loop.setup_data()  # before it the number of batches is unknown
        batches = self.trainer.num_training_batches
        limit = f"limit_train_batches={self.trainer.limit_train_batches}"
        expect(batches < math.inf, f"{limit} of an endless loader", "a number of batches from 1")
        per_epoch = math.ceil(batches / self.trainer.accumulate_grad_batches)  # the last step may accumulate fewer
        steps = {"warmup": self.warmup_epochs * per_epoch, "total": self.epochs * per_epoch}
        taken, epochs = int(self.trainer.estimated_stepping_batches), self.trainer.max_epochs or 0
        for average in self.trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(average, WeightAveraging):
                begins = any(average.should_update(step_idx=step) for step in range(taken))
                begins = begins or any(average.should_update(epoch_idx=epoch) for epoch in range(epochs))
                begins = begins and (getattr(average, "update_starting_at_epoch", None) or 0) < epochs
                expect(begins, "recipe.ema begins after the run", f"a start within its {taken} steps, {epochs} epochs")
        schedule = self.make_schedule(optimizer, **steps)
        scale_by_layer(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: Any) -> None:
        """Steps the schedule without timm's layer decay, which is a factor on its results, its minimum included."""
        scale_by_layer(scheduler.optimizer, -1)
        super().lr_scheduler_step(scheduler, metric)
        scale_by_layer(scheduler.optimizer)


def scale_by_layer(optimizer: torch.optim.Optimizer, power: int = 1) -> None:
    """Multiplies the learning rates of timm's layer decay by the factor of their layer; -1 takes it out again."""
    for group in optimizer.param_groups:
        if "lr_scale" in group:
            group["lr"] *= group["lr_scale"] ** power
