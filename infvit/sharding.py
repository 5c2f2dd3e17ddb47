"""Training with weights, gradients and optimizer state cut over the processes (FSDP2): the numbers of one process."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.fabric.utilities.optimizer import _optimizers_to_device
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from data.datamodule import ImageDataModule
from infvit.errors import UsageError
from infvit.module import Classifier


class FullySharded(DDPStrategy):
    """Each process keeps its part of every weight, and sees a whole block only while that block computes.

    Processes, their collectives and their launchers are DDP's; only the wrapper is another. Checkpoints are read before
    the weights are cut and written when they are put together again, so that they are those of any other run, whoever
    goes on with them.

    Lightning's own FSDP refuses the CPU and clipping by norm; its ModelParallelStrategy knows no averaged weights, and
    takes the parameters of a checkpoint's optimizer in the model's order where an optimizer of several groups has its
    own.
    """

    def check(self, trainer: Trainer, module: Classifier, data: ImageDataModule) -> None:
        """Raises UsageError for what sharded weights do not go together with."""
        if module.net._compiled_call_impl is not None:
            raise UsageError("compile=true is not tried with trainer=fsdp: leave it out, or use trainer=ddp")
        if trainer.precision == "16-mixed":
            raise UsageError(
                "trainer.precision=16-mixed scales the loss, which sharded gradients do not know: use bf16-mixed or "
                "32-true, or trainer=ddp"
            )
        if data.val_size < trainer.world_size:
            raise UsageError(
                f"data={data.name} has {data.val_size} images to validate with, fewer than trainer.devices="
                f"{trainer.world_size}: expected one for each process of trainer=fsdp"
            )

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        trainer.test_loop.inference_mode = False  # as Lightning has it for its own FSDP
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self.precision_plugin.convert_module(self.model)
            self._shard(trainer)
        self.model_to_device()  # metrics and buffers
        if fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()
        if fitting:
            _optimizers_to_device(self.optimizers, self.root_device)

    def _shard(self, trainer: Trainer) -> None:
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        assert isinstance(self.lightning_module, Classifier)
        shard(self.lightning_module.net, mesh)
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        for callback in callbacks:
            if isinstance(callback, WeightAveraging):
                assert callback._average_model is not None
                average: Any = callback._average_model.module
                shard(average.net, mesh)
        callbacks.insert(0, EvenEvaluation())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """The same file as one process writes; each tensor is whole in the first process alone."""

        def put_together(tensor: DTensor) -> Tensor | None:
            found = gathered(tensor.detach())
            return found.cpu() if self.is_global_zero else None

        super().save_checkpoint(apply_to_collection(checkpoint, DTensor, put_together), filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Weights are loaded before they are cut, the optimizer's numbers behind that."""
        states = [
            sharded_state(optimizer, state)
            for optimizer, state in zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        ]
        super().load_optimizer_state_dict({"optimizer_states": states})


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Cuts the weights of `net` over the processes of `mesh`: each block is gathered by itself, and what is left.

    Blocks are what stands in a list named `blocks`, as in timm's models.
    """
    lists = [child for name, child in net.named_modules() if name.rpartition(".")[2] == "blocks"]
    for block in [block for found in lists for block in found.children()]:
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # True for the root also: callbacks look at weights after a forward pass without a backward one.
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def sharded_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """An optimizer's whole state as this process's part of it; both list their parameters in the same order."""
    parts = dict(state["state"])
    for group, saved in zip(optimizer.param_groups, state["param_groups"], strict=True):
        for parameter, key in zip(group["params"], saved["params"], strict=True):
            if key not in parts:
                continue
            parts[key] = {
                name: distribute_tensor(value.to(parameter.device), parameter.device_mesh, parameter.placements)
                if isinstance(value, Tensor) and value.shape == parameter.shape
                else value
                for name, value in parts[key].items()
            }
    return state | {"state": parts}


def gathered(tensor: Tensor) -> Tensor:
    """A tensor that is cut over the processes, whole; all must ask. Any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor that is cut over the processes, which may be empty. Any other as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def whole(net: nn.Module) -> Iterator[None]:
    """All weights of `net` in all processes, each of which may then do with them what the others do not.

    All processes must enter. Of a network that is not sharded it changes nothing.
    """
    parts = [part for part in net.modules() if isinstance(part, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.set_reshard_after_forward(True, recurse=False)
            part.reshard()


class EvenEvaluation(Callback):
    """Where a process has fewer images of an evaluation than others, it gathers the blocks with them to the end.

    Each image counts exactly once, so one process may have a batch more. To stand in front of all callbacks: what
    these do when an evaluation ends may be a collective of its own.
    """

    def __init__(self) -> None:
        self.missing = 0
        self.image: Tensor | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compare(trainer, sum(trainer.num_val_batches))

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._compare(trainer, sum(trainer.num_test_batches))

    def on_validation_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: int) -> None:
        self.image = batch[0][:1]

    def on_test_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, *_: int) -> None:
        self.image = batch[0][:1]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fill_up(trainer, pl_module)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._fill_up(trainer, pl_module)

    def _compare(self, trainer: Trainer, mine: float) -> None:
        most = trainer.strategy.reduce(torch.tensor(mine, device=trainer.strategy.root_device), reduce_op="max")
        self.missing = int(most) - int(mine)

    def _fill_up(self, trainer: Trainer, module: LightningModule) -> None:
        with trainer.precision_plugin.forward_context():
            for _ in range(self.missing):
                module(self.image)
