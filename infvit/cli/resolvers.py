"""The resolvers of conf/, such as ${precision:} and ${config_hash:}; importing this module registers them."""

import os
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from infvit.attention import overview
from infvit.cli.run_folder import run_folder
from infvit.errors import UsageError
from infvit.run import identity
from infvit.run.ranks import broadcast_from_rank_zero, is_global_zero


def precision() -> str:
    """Lightning's precision for the hardware: bf16-mixed on GPUs that support it, float32 elsewhere."""
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def sweep_name() -> str | None:
    """The name of the sweep's folder, which groups its runs; None for a single run."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


def config_hash(*, _root_: DictConfig) -> str:
    """`infvit.run.identity.config_hash` of the composed config."""
    return identity.config_hash(_root_)


def size_name() -> str:
    """The chosen size and the overrides of it, such as "large4 size.depth=12"."""
    hydra = HydraConfig.get()
    changed = [o.lstrip("+") for o in hydra.overrides.task if o.lstrip("+").startswith("size.")]
    return " ".join([hydra.runtime.choices["size"], *sorted(changed)])


def jobs_at_once() -> int:
    """Number of jobs that the launcher runs on this machine at the same time; 1 for a single run."""
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    jobs = HydraConfig.get().launcher.get("n_jobs") if sweeping else None
    cores = len(os.sched_getaffinity(0))
    return 1 if jobs is None else jobs if jobs > 0 else max(cores + 1 + jobs, 1)  # joblib: -1 is one job per core


def threads_per_job() -> int | None:
    """CPU threads of each of several parallel jobs, its share of the cores; None, torch's default, for a single job."""
    jobs = jobs_at_once()
    return max(len(os.sched_getaffinity(0)) // jobs, 1) if jobs > 1 else None


def job_label() -> str:
    """The prefix of a job's lines where several jobs share the terminal: its folder's name; otherwise empty."""
    return Path(HydraConfig.get().runtime.output_dir).name if jobs_at_once() > 1 else ""


def cores_per_device(devices: int | str | Sequence[int]) -> int:
    """Threads or processes that read images for each device of this machine: its share of the cores."""
    listed = len(devices) if isinstance(devices, Sequence) else devices
    count = torch.cuda.device_count() if isinstance(devices, str) else listed
    return max(len(os.sched_getaffinity(0)) // jobs_at_once() // max(count, 1), 1)


def config_folder() -> str | None:
    """The subfolder of a run in which Hydra writes its config; None on all ranks but rank zero."""
    return ".hydra" if is_global_zero() else None


def tasks_per_node(devices: Any) -> int:
    """SLURM tasks of a job on each node, one per device; the submitting machine cannot resolve "auto"."""
    if isinstance(devices, int) and devices > 0:
        return devices
    raise UsageError(f"trainer.devices={devices} is not known before a job starts: give SLURM a number, e.g. 8")


def gpus_per_node(accelerator: str, devices: Any) -> int | None:
    """GPUs to request from SLURM; None for a job that trains on the CPU."""
    return None if accelerator == "cpu" else tasks_per_node(devices)


def source_root() -> str:
    """The folder of train.py, from which the processes of a SLURM job import."""
    return str(Path(__file__).resolve().parents[2])


def tokens(image_size: int, patch: int, class_token: bool) -> int:
    """Number of tokens that the backbone makes of a training image."""
    return (image_size // patch) ** 2 + int(class_token)


def config_groups() -> str:
    """The groups of conf/ with their options, for --help, in 80 columns."""
    loader = GlobalHydra.instance().config_loader()
    lines = []
    for group in sorted(set(loader.list_groups("")) - {"hydra"}):
        options = ", ".join(name for name in loader.get_group_options(group) if not name.startswith("_"))
        lines.append(textwrap.fill(f"{group}: {options}", 78, initial_indent="  ", subsequent_indent="    "))
    return "\n".join(lines)


def register() -> None:
    """Registers all resolvers of conf/ with OmegaConf."""
    for resolver in (
        precision,
        sweep_name,
        config_hash,
        size_name,
        threads_per_job,
        job_label,
        cores_per_device,
        config_folder,
        tasks_per_node,
        gpus_per_node,
        source_root,
        tokens,
        config_groups,
        run_folder,
        broadcast_from_rank_zero,
    ):
        cached = resolver is run_folder  # creates a folder
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True, use_cache=cached)
    OmegaConf.register_new_resolver("attentions", overview, replace=True)


register()  # on import: the processes of a parallel sweep compose their jobs without running train.py
