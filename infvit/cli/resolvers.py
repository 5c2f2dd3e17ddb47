"""What configurations ask of the machine and of Hydra, as `${precision:}`, `${config_hash:}` and so on."""

import hashlib
import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, ListConfig, OmegaConf

from infvit.cli.run_folder import run_folder
from infvit.errors import UsageError
from infvit.run.ranks import broadcast_from_rank_zero, is_global_zero

IDENTITY = ("model", "size", "recipe", "data", "trainer", "seed", "compile")
"""What a run's result depends on, besides the code."""

WHERE = {
    "accelerator",
    "devices",
    "num_nodes",
    "strategy",
    "timeout",
    "workers",
    "cache",
    "cache_dir",
    "default_root_dir",
    "eval_batch_size",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "how_to_prepare",
}
"""Keys, wherever they stand, that say where and how a run is computed and not what."""

UNNAMED = "imagefolder"
"""The name of data that are known by their folder alone; others may lie elsewhere the next time."""

OF_A_ROW = {*WHERE, "seed", "root", "accumulate_grad_batches"}
"""Keys that may differ within a row of the comparison; images have their fingerprint."""


def precision() -> str:
    """Lightning's precision for the hardware: bf16 on GPUs that compute in it, float32 elsewhere."""
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def sweep_name() -> str | None:
    """The sweep's folder name, which groups its runs; None for a single run."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


def config_hash(*, _root_: DictConfig) -> str:
    """Eight hexadecimal digits of all that a run's result depends on: equal for the same job of a repeated sweep."""
    without = WHERE if _root_.data.name == UNNAMED else {*WHERE, "root"}
    content = {name: _what(OmegaConf.select(_root_, name), without) for name in IDENTITY}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]


def settings(cfg: DictConfig) -> dict[str, Any]:
    """What a row of the comparison depends on, besides the code and the images, as {"model.attention.hops": 3}."""
    return _flat({name: _what(OmegaConf.select(cfg, name), OF_A_ROW) for name in IDENTITY if name not in OF_A_ROW})


def _what(content: Any, without: Collection[str]) -> Any:
    if isinstance(content, DictConfig):
        known = {str(name): name for name in content if name not in without and not OmegaConf.is_missing(content, name)}
        return {key: _what(content[name], without) for key, name in known.items()}
    return [_what(value, without) for value in content] if isinstance(content, ListConfig) else content


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in content.items():
        inner = _flat(value) if isinstance(value, dict) else {}
        flat |= {f"{key}.{name}": part for name, part in inner.items()} or {key: value}
    return flat


def size_name() -> str:
    """The chosen size and what was changed of it, "large4 size.depth=12"."""
    hydra = HydraConfig.get()
    changed = [o.lstrip("+") for o in hydra.overrides.task if o.lstrip("+").startswith("size.")]
    return " ".join([hydra.runtime.choices["size"], *sorted(changed)])


def jobs_at_once() -> int:
    """How many jobs the launcher runs on this machine at the same time; 1 for a single run."""
    sweeping = HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN
    jobs = HydraConfig.get().launcher.get("n_jobs") if sweeping else None
    cores = len(os.sched_getaffinity(0))
    return 1 if jobs is None else jobs if jobs > 0 else max(cores + 1 + jobs, 1)  # joblib: -1 is a job for every core


def threads_per_job() -> int | None:
    """CPU threads for one of several jobs at once: its share of the cores; None, torch's choice, for one alone."""
    jobs = jobs_at_once()
    return max(len(os.sched_getaffinity(0)) // jobs, 1) if jobs > 1 else None


def job_label() -> str:
    """What a job's lines begin with where several speak at once: its folder's name; otherwise nothing."""
    return Path(HydraConfig.get().runtime.output_dir).name if jobs_at_once() > 1 else ""


def cores_per_device(devices: int | str | Sequence[int]) -> int:
    """Reading threads or processes for each device of this machine: its share of the cores."""
    if isinstance(devices, str):
        count = torch.cuda.device_count()
    else:
        count = devices if isinstance(devices, int) else len(devices)
    return max(len(os.sched_getaffinity(0)) // jobs_at_once() // max(count, 1), 1)


def config_folder() -> str | None:
    """Where in a run's folder Hydra writes its configuration; None in all processes of a job but the first."""
    return ".hydra" if is_global_zero() else None


def tasks_per_node(devices: Any) -> int:
    """Processes of a job on each node, one a device; the machine that submits cannot count another's devices."""
    if isinstance(devices, int) and devices > 0:
        return devices
    raise UsageError(f"trainer.devices={devices} is not known before a job starts: give SLURM a number, e.g. 8")


def gpus_per_node(accelerator: str, devices: Any) -> int | None:
    """GPUs to ask SLURM for; None where a job trains on the CPU."""
    return None if accelerator == "cpu" else tasks_per_node(devices)


def source_root() -> str:
    """The folder of train.py, from which the processes of a job import."""
    return str(Path(__file__).resolve().parents[2])


def tokens(image_size: int, patch: int, class_token: bool) -> int:
    """How many tokens the backbone makes of a training image."""
    return (image_size // patch) ** 2 + int(class_token)


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The composed configuration with every value resolved, for loggers."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    return content  # type: ignore[return-value]


def register() -> None:
    """Makes the resolvers known to OmegaConf; before composing."""
    asked = (precision, sweep_name, size_name, config_hash, threads_per_job, job_label, cores_per_device)
    of_several_processes = (broadcast_from_rank_zero, config_folder, tasks_per_node, gpus_per_node, source_root)
    for resolver in (*asked, *of_several_processes, tokens, run_folder):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


register()  # on import, because the processes of a parallel sweep compose their jobs without coming through train.py
