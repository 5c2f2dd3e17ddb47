"""Devices, threads and seed of a run, and the processes of a distributed job."""

import contextlib
import os
import sys
from collections.abc import Iterator
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig, read_write

from infvit.check import fits_in_model
from infvit.cli.recipe import check_read, check_values
from infvit.cli.run_folder import run_command
from infvit.cli.validation import check_config
from infvit.errors import UsageError, expect
from infvit.module import Classifier
from infvit.run.ranks import launcher
from infvit.sharding import FullySharded
from infvit.vit import VisionTransformer

READ_BY_CODE = (
    "name",
    "model.name",
    "data.name",
    "seed",
    "threads",
    "compile",
    "grad_checkpointing",
    "init",
    "convert",
    "resume",
    "dry_run",
)
"""Keys that train.py reads itself."""

RENDEZVOUS = ("MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE", "NODE_RANK", "LOCAL_RANK")


def prepare_run(cfg: DictConfig, *parts: str) -> None:
    """Checks recipe, config and devices, and sets threads and seed, before anything is instantiated."""
    check_read(cfg, HydraConfig.get(), *READ_BY_CODE, *(part for part in parts if part != "recipe"))
    check_config(cfg, *parts, *(["convert"] if cfg.get("convert") else []))
    expect(isinstance(cfg.compile, bool), f"compile={cfg.compile}", "true or false")
    check_devices(cfg.trainer)
    check_values(cfg)
    seed_run(cfg.seed)
    use_threads(cfg.threads)


def check_measurement(cfg: DictConfig) -> None:
    """Checks the config of eval.py; settings of data that it does not name are checked with those of the run."""
    hydra = HydraConfig.get()
    choices, read = hydra.runtime.choices, ["measure", "trainer", "name", "threads", "wandb", "project", "trust"]
    read += ["data.module" if choices.get("data") else "data"] * ("ckpt" in cfg) + ["size"] * ("size" in choices)
    check_read(cfg, hydra, *read)
    check_config(cfg, "measure")


def check_devices(trainer: DictConfig) -> None:
    """Raises UsageError if the trainer's GPUs do not exist, or a launcher started another number of processes.

    Several devices mean GPUs unless the accelerator is given: eight slow CPU processes instead of eight GPUs would be a
    surprise.
    """
    hydra, environment = HydraConfig.get(), launcher()
    if hydra.mode != RunMode.MULTIRUN and hydra.runtime.choices["hydra/launcher"] not in ("basic", "joblib"):
        raise UsageError(
            "hydra/launcher submits the jobs of a sweep, and this is a single run: add -m; one job is a sweep of one, "
            "e.g. -m hydra/launcher=slurm model=vit seed=0"
        )
    devices = _count(trainer.devices)
    processes = devices * trainer.num_nodes
    if processes and environment is not None and environment.world_size() != processes:
        raise UsageError(
            f"trainer.devices={trainer.devices} trainer.num_nodes={trainer.num_nodes} are {processes} processes, found "
            f"{environment.world_size()}: start as many with torchrun --nproc_per_node or srun --ntasks-per-node; a "
            "sweep on SLURM takes both values from its command, not from what it sweeps over"
        )
    if trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and devices > 1):
        found = torch.cuda.device_count()
        if found < max(devices, 1):
            raise UsageError(
                f"trainer.devices={trainer.devices} trainer.accelerator={trainer.accelerator} needs GPUs that are not "
                f"there, found {found}: use trainer.devices={max(found, 1)}"
                + ("" if found else " trainer.accelerator=cpu, or trainer=ddp_cpu for several processes")
            )


def _count(devices: Any) -> int:
    """Number of devices; 0 if the trainer chooses it."""
    if devices == "auto" or str(devices) == "-1":
        return 0
    if isinstance(devices, str) and not devices.isdigit():
        return len(devices.strip(",").split(","))
    return int(devices) if isinstance(devices, int | str) else len(devices)


def check_batch(trainer: Trainer, module: Classifier, data: Any) -> None:
    """Raises UsageError if the recipe's batch does not divide over the devices, its settings do not fit together, or an
    attention returns another shape than it gets or mixes images.

    Called before the run starts, because its first work may be to write a data set to disk for hours. `data` is the
    `data.datamodule.ImageDataModule`, which this package does not import.
    """
    if isinstance(trainer.strategy, FullySharded):
        trainer.strategy.check(trainer, module, data.val_size, data.name)
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
    algorithm = trainer.gradient_clip_algorithm
    expect(
        clip is not None or algorithm is None, f"trainer.gradient_clip_algorithm={algorithm}", "recipe.clip_grad too"
    )
    if isinstance(module.net, VisionTransformer):
        plugin = trainer.precision_plugin
        with plugin.forward_context():
            fits_in_model(module.net, trainer.strategy.root_device, plugin.convert_module)
    share = data.per_device(trainer)
    if module.mixup is not None and share % 2:
        raise UsageError(
            f"recipe.batch_size={data.batch_size} leaves each device batches of {share}, and recipe.mixup mixes pairs: "
            f"give a multiple of {2 * data.batch_size // share}"
        )
    expect(
        getattr(module.mixup, "mix_prob", 1) > 0, "recipe.mixup.prob=0", "more than 0; recipe.mixup=null mixes nothing"
    )
    twice = getattr(module.mixup, "label_smoothing", 0) and module.label_smoothing
    expect(
        not twice,
        "recipe.mixup.label_smoothing besides recipe.label_smoothing",
        "0 in one, or labels are smoothed twice",
    )


def use_threads(threads: int | None) -> None:
    """Sets the CPU threads of torch; None keeps torch's default."""
    if threads is not None:
        valid = type(threads) is int and 1 <= threads < 2**16  # true is not 1
        expect(valid, f"threads={threads}", "a number of CPU threads, or null for torch's default")
        torch.set_num_threads(threads)


def seed_run(seed: int) -> None:
    """Seeds Python, numpy and torch before the model is made: all ranks start with the same weights."""
    expect(type(seed) is int and 0 <= seed < 2**32, f"seed={seed}", f"a whole number from 0 to {2**32 - 1}")
    seed_everything(seed, workers=True, verbose=False)


@contextlib.contextmanager
def distributed_job() -> Iterator[None]:
    """Makes the processes that Lightning starts run this one job of a sweep, and destroys their process group after it.

    Lightning repeats this process's command line, which with `--multirun` would start a whole sweep in each worker
    (Lightning issue 11300): the command line becomes the job's own, its overrides and its output folder. Lightning also
    leaves the process group and its variables, which the sweep's next job would take for its own. Processes that
    torchrun or SLURM started stay together, and so does their group.
    """
    before = {name: os.environ.get(name) for name in RENDEZVOUS}
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        sys.argv[1:] = run_command()[2:]
        run = cast(DictConfig, hydra.run)
        with read_write(run):
            run.dir = hydra.runtime.output_dir
    try:
        yield
    finally:
        if launcher() is None and torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
