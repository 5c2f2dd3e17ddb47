"""Training with weights, gradients and optimizer state sharded over the ranks (FSDP2), with one process's numbers."""

import contextlib
from collections.abc import Iterator
from itertools import chain
from typing import Any

import torch
from lightning.fabric.utilities.apply_func import apply_to_collection
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from infvit.errors import UsageError, expect
from infvit.module import Classifier


class FullySharded(DDPStrategy):
    """Each rank holds a shard of every weight, and a whole block only while that block computes.

    Processes, collectives and launchers are DDP's. Checkpoints are loaded before the weights are sharded and gathered
    when they are written, so a run under any strategy can resume from them.

    Lightning's own FSDPStrategy supports neither the CPU nor clipping by norm; its ModelParallelStrategy supports no
    averaged weights, and loads optimizer states in the model's order of parameters, which is another one when an
    optimizer has several groups.
    """

    def check(self, trainer: Trainer, module: Classifier, val_size: int, data_name: str) -> None:
        """Raises UsageError for settings that do not work with sharded weights.

        Args:
            val_size: number of validation images of the data set `data_name`.
        """
        if module.net._compiled_call_impl is not None:  # torch has no public test for nn.Module.compile()
            raise UsageError("compile=true is not tried with trainer=fsdp: leave it out, or use trainer=ddp")
        if trainer.precision == "16-mixed":
            raise UsageError(
                "trainer.precision=16-mixed scales the loss, which sharded gradients do not support: use bf16-mixed or "
                "32-true, or trainer=ddp"
            )
        images = f"data={data_name} has {val_size} images to validate with"
        expect(val_size >= trainer.world_size, images, f"one for each of trainer.devices={trainer.world_size}")

    def setup(self, trainer: Trainer) -> None:
        assert self.accelerator is not None
        assert self.model is not None
        self.accelerator.setup(trainer)
        trainer.test_loop.inference_mode = False  # as Lightning sets it for its own FSDP
        fitting = trainer.state.fn == TrainerFn.FITTING
        if fitting:
            self.precision_plugin.convert_module(self.model)
            self._shard(trainer)
        self.model_to_device()  # metrics and buffers
        if fitting:
            self.setup_optimizers(trainer)
        self.setup_precision_plugin()

    def _shard(self, trainer: Trainer) -> None:
        mesh = init_device_mesh(self.root_device.type, (self.world_size,))
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        # Lightning has no public access to the averaged model.
        averages: list[Any] = [c._average_model for c in callbacks if isinstance(c, WeightAveraging)]
        for module in (self.lightning_module, *(average.module for average in averages)):
            shard(module.net, mesh)
        callbacks.insert(0, EvenEvaluation())

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        """Writes the file that one process would write; the gathered tensors are kept on rank zero alone."""

        def gather(tensor: DTensor) -> Tensor | None:
            found = full_tensor(tensor.detach())
            return found.cpu() if self.is_global_zero else None

        super().save_checkpoint(apply_to_collection(checkpoint, DTensor, gather), filepath, storage_options)

    def load_optimizer_state_dict(self, checkpoint: Any) -> None:
        """Shards the optimizers' states; the weights were loaded before they were sharded."""
        pairs = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        super().load_optimizer_state_dict({"optimizer_states": [shard_optimizer_state(*pair) for pair in pairs]})


def shard(net: nn.Module, mesh: DeviceMesh) -> None:
    """Shards the weights of `net` over `mesh`: each block is one unit of gathering, and the rest is another.

    Blocks are the children of modules named `blocks`, as in timm's models.
    """
    lists = [child for name, child in net.named_modules() if name.rpartition(".")[2] == "blocks"]
    for block in chain.from_iterable(found.children() for found in lists):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    # The root too: callbacks read weights after forward passes without a backward pass.
    fully_shard(net, mesh=mesh, reshard_after_forward=True)


def shard_optimizer_state(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Returns this rank's shards of an optimizer's full state; both list their parameters in the same order."""

    def sharded(value: Any, like: DTensor) -> Any:
        if not isinstance(value, Tensor) or value.shape != like.shape:
            return value
        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)

    parameters = chain.from_iterable(group["params"] for group in optimizer.param_groups)
    keys = chain.from_iterable(group["params"] for group in state["param_groups"])
    parts = {
        key: {name: sharded(value, parameter) for name, value in state["state"].get(key, {}).items()}
        for parameter, key in zip(parameters, keys, strict=True)
    }
    return state | {"state": parts}


def full_tensor(tensor: Tensor) -> Tensor:
    """Gathers a sharded tensor (collective: every rank must call this); returns any other tensor as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_tensor(tensor: Tensor) -> Tensor:
    """This rank's shard of a sharded tensor, possibly empty; any other tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@contextlib.contextmanager
def unsharded(net: nn.Module) -> Iterator[None]:
    """Holds all weights of `net` on every rank, so that ranks may run it independently of each other.

    Entering is collective. Without effect on a network that is not sharded.
    """
    units = [module for module in net.modules() if isinstance(module, FSDPModule)]
    for unit in units:
        unit.set_reshard_after_forward(False, recurse=False)
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.set_reshard_after_forward(True, recurse=False)
            unit.reshard()


class EvenEvaluation(Callback):
    """Makes ranks with fewer evaluation batches run extra forward passes, because gathering a block is collective.

    Each image counts exactly once, so one rank may have a batch more than another. First among the callbacks: the
    others may call collectives of their own when an evaluation ends.
    """

    def __init__(self) -> None:
        self.missing = 0
        self.image: Tensor | None = None

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        batches = sum(trainer.num_test_batches if trainer.testing else trainer.num_val_batches)
        most = trainer.strategy.reduce(torch.tensor(batches, device=trainer.strategy.root_device), reduce_op="max")
        self.missing = int(most) - int(batches)

    def on_validation_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.image = batch[0][:1]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        with trainer.precision_plugin.forward_context():
            for _ in range(self.missing):
                pl_module(self.image)

    on_test_start = on_validation_start
    on_test_batch_start = on_validation_batch_start
    on_test_epoch_end = on_validation_epoch_end
