"""Skips steps whose loss or gradient is not finite; ends a run that has many in a row and names the layer at fault."""

from pathlib import Path
from typing import Any, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from callbacks.run_record import RunRecord
from infvit.cli.run_folder import CHECKPOINTS
from infvit.errors import expect
from infvit.measure.nonfinite import first_nonfinite
from infvit.run.checkpoint import LAST
from infvit.run.files import print_line, tolerate_write_errors
from infvit.sharding import local_tensor, unsharded


class SkipNonFinite(Callback):
    """Leaves weights and optimizer unchanged, on all ranks, in a step whose loss or gradient is not finite.

    Logs `steps_skipped`, the number of such steps of the whole run so far. After `stop_after` of them in a row the run
    has diverged: the last batch is written beside the checkpoints, another pass over it finds the layer, and training
    ends with a checkpoint of the weights from before.

    On the CPU every step is checked. A GPU would have to synchronize for that: there Adam's fused kernels skip by a
    flag on the device, and the counts are read every `stop_after` steps. Other optimizers synchronize in every step.

    Args:
        stop_after: consecutive steps.
        folder: of the run.
    """

    def __init__(self, stop_after: int, folder: str) -> None:
        expect(stop_after >= 1, f"callbacks.skip_nonfinite.stop_after={stop_after}", "1 step or more")
        self.stop_after, self.folder = stop_after, Path(folder)
        self.bad_loss: Tensor | None = None
        self.counts = torch.tensor([0, 0])  # skipped steps in a row, in all
        self.reported = False
        self.unwritten: dict[str, str] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.counts = self.counts.to(pl_module.device)
        if pl_module.device.type == "cuda":
            for optimizer in trainer.optimizers:
                use_fused_kernels(optimizer)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        bad = ~loss.detach().isfinite()
        self.bad_loss = bad if self.bad_loss is None else self.bad_loss | bad

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert self.bad_loss is not None
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        gradients = [local_tensor(cast(Tensor, p.grad)) for p in parameters]
        norm = get_total_norm([grad for grad in gradients if grad.numel()])  # a tenth of the time of the largest entry
        bad = (self.bad_loss | ~norm.isfinite()).float()
        if trainer.world_size > 1:
            bad = cast(Tensor, trainer.strategy.reduce(bad, reduce_op="max"))
        self.bad_loss = None
        in_a_row, in_all = self.counts
        self.counts = torch.stack([(in_a_row + 1) * bad.long(), in_all + bad.long()])
        if all(group.get("fused") for group in optimizer.param_groups):
            optimizer.found_inf = bad  # type: ignore[attr-defined]
        elif bad.item():
            for parameter in parameters:
                parameter.grad = None  # optimizers skip parameters without a gradient

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        on_cpu = pl_module.device.type == "cpu"
        if self.bad_loss is not None or not (on_cpu or trainer.global_step % self.stop_after == 0):
            return
        in_a_row = int(self.counts[0])
        if in_a_row and not self.reported and trainer.is_global_zero:
            self.reported = True
            print_line(
                f"step {trainer.global_step}: loss or gradient is not finite, the step is skipped; from now on "
                f"steps_skipped counts them, {self.stop_after} in a row end the run"
            )
        if in_a_row >= self.stop_after and not trainer.should_stop:
            self._end_run(trainer, pl_module, batch, in_a_row)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        pl_module.log("steps_skipped", self.counts[1].float())

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": int(self.counts[1])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.counts = torch.tensor([0, state_dict["skipped"]])

    def _end_run(self, trainer: Trainer, module: LightningModule, batch: Any, in_a_row: int) -> None:
        net = cast(nn.Module, module.net)
        with trainer.precision_plugin.train_step_context(), unsharded(net):
            place = first_nonfinite(net, *batch)
        places: list[str | None] = [place] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(places, place)
        rank = next((rank for rank, found in enumerate(places) if found), 0)
        path = self.folder / CHECKPOINTS / f"offending_batch_rank{rank}.pt"
        if trainer.global_rank == rank:
            images, labels = batch
            with tolerate_write_errors(path.name, "the run ends without it", self.unwritten):
                path.parent.mkdir(parents=True, exist_ok=True)
                torch.save({"images": images.cpu(), "labels": labels.cpu(), "step": trainer.global_step}, path)
        finite = all(local_tensor(weight).isfinite().all() for weight in net.parameters())
        before = f"weights from before are {path.with_name(LAST)}" if finite else "weights are not finite either"
        line = (
            f"loss or gradient was not finite in {in_a_row} steps in a row, up to step {trainer.global_step}; it began "
            f"in {places[rank] or 'no layer: all is finite for the batch as it was loaded'}. The batch is {path}, the "
            + before
        )
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, RunRecord):
                callback.diverged(line)
        trainer.should_stop = True


def use_fused_kernels(optimizer: torch.optim.Optimizer) -> None:
    """Makes Adam and AdamW use their fused kernels, which skip a step where `optimizer.found_inf` is 1.

    Set in the parameter groups: with the constructor's argument Lightning refuses to clip gradients.
    """
    if isinstance(optimizer, torch.optim.Adam | torch.optim.AdamW):
        for group in optimizer.param_groups:
            group.update(fused=True, foreach=False)
        for parameter, state in optimizer.state.items():
            state["step"] = state["step"].to(parameter.device, torch.float32)
