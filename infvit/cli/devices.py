"""The devices that a run asks for: are they there, and does each worker of a distributed job run that one job?"""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Trainer
from omegaconf import DictConfig, read_write

from data.datamodule import ImageDataModule
from infvit.errors import UsageError, expect
from infvit.module import Classifier
from infvit.run.ranks import launcher
from infvit.sharding import FullySharded

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK")


def check_devices(trainer: DictConfig) -> None:
    """Raises UsageError if GPUs are asked for that are not there, or other processes than the launcher started.

    Several devices mean GPUs unless the accelerator says otherwise: eight slow CPU processes in the place of eight
    GPUs would be a surprise.
    """
    asked = _count(trainer.devices)
    _check_launcher(trainer, asked * trainer.num_nodes)
    if trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and asked > 1):
        found = torch.cuda.device_count()
        if found < max(asked, 1):
            raise UsageError(
                f"trainer.devices={trainer.devices} trainer.accelerator={trainer.accelerator} asks for GPUs that are "
                f"not there, found {found}: use trainer.devices={max(found, 1)}"
                + ("" if found else " trainer.accelerator=cpu, or trainer=ddp_cpu for several processes")
            )


def _check_launcher(trainer: DictConfig, asked: int) -> None:
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN and "submitit" in str(hydra.launcher.get("_target_")):
        raise UsageError(
            "hydra/launcher submits the jobs of a sweep, and this is a single run here: add -m; one job is a sweep "
            "of one, e.g. -m hydra/launcher=slurm model=vit seed=0"
        )
    started_by = launcher()
    if asked and started_by is not None and started_by.world_size() != asked:
        raise UsageError(
            f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes} are {asked} processes, found "
            f"{started_by.world_size()}: start as many by torchrun --nproc_per_node or srun --ntasks-per-node; a sweep "
            "by SLURM takes both values from its command, not from what it sweeps over"
        )


def _count(devices: Any) -> int:
    if isinstance(devices, str) and not devices.lstrip("-").isdigit():
        return 0 if devices == "auto" else len([d for d in devices.split(",") if d])
    if isinstance(devices, int | str):
        return max(int(devices), 0)
    return len(devices)


def check_batch(trainer: Trainer, module: Classifier, data: ImageDataModule) -> None:
    """Raises UsageError if the recipe's batch does not divide over the devices or leaves Mixup an odd one, if Mixup or
    the trainer has a setting that cannot be, or if what is asked for cannot be sharded.

    To be called before the run starts: its first work may be to write a data set to disk for hours.
    """
    if isinstance(trainer.strategy, FullySharded):
        trainer.strategy.check(trainer, module, data)
    for name in ("accumulate_grad_batches", "max_epochs", "log_every_n_steps"):
        count = getattr(trainer, name)
        expect(count is not None and count >= 1, f"trainer.{name}={count}", "1 or more")
    epochs = trainer.max_epochs or 0
    expect(
        epochs <= module.epochs,
        f"trainer.max_epochs={epochs} is longer than the recipe's schedule",
        f"{module.epochs} or fewer; recipe.epochs={epochs} makes the schedule as long",
    )
    clip = trainer.gradient_clip_val
    expect(clip is None or clip > 0, f"recipe.clip_grad={clip}", "a norm above 0, or null for no clipping")
    share = data.per_device(trainer)
    if module.mixup is not None and share % 2:
        raise UsageError(
            f"recipe.batch_size={data.batch_size} leaves each device batches of {share}, and recipe.mixup mixes pairs: "
            f"give a multiple of {2 * data.batch_size // share}"
        )
    if module.mixup is not None:
        try:
            module.mixup(torch.zeros(2, 3, data.view.size, data.view.size), torch.tensor([0, 0]))
        except Exception as error:  # timm looks at its settings when it mixes
            raise UsageError(f"recipe.mixup cannot mix with its settings: {error}") from error


def use_threads(threads: int | None) -> None:
    """Sets the CPU threads of torch; None leaves them as torch chooses."""
    if threads is not None:
        whole = isinstance(threads, int) and not isinstance(threads, bool)
        expect(
            whole and 1 <= threads < 2**16, f"threads={threads}", "a number of CPU threads, or null for torch's choice"
        )
        torch.set_num_threads(threads)


@contextlib.contextmanager
def workers_of_this_job() -> Iterator[None]:
    """Makes the processes that Lightning starts for a distributed job of a sweep run that job, and lets go of them.

    Lightning repeats the command line of this process, which under `--multirun` would start a whole sweep in each
    worker (Lightning issue 11300): the command becomes the job's own, its overrides and its output folder. It leaves
    the process group and its variables behind, which the sweep's next job would take for its own. Where torchrun or
    SLURM started the processes they stay together, and so does their group.
    """
    before = {name: os.environ.get(name) for name in RENDEZVOUS}
    cfg = HydraConfig.get()
    if cfg.mode == RunMode.MULTIRUN:
        sys.argv[1:] = list(cfg.overrides.task)
        run = cast(DictConfig, cfg.run)
        with read_write(run):
            run.dir = cfg.runtime.output_dir
    try:
        yield
    finally:
        if launcher() is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
