"""What configurations ask of the machine and of Hydra: `${precision:}`, `${sweep_name:}`, `${wandb_mode:}` ..."""

import contextlib
import netrc
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf


def precision() -> str:
    """Lightning's precision for the hardware: bf16 on GPUs that compute in it, float32 elsewhere."""
    return "bf16-mixed" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "32-true"


def sweep_name() -> str | None:
    """The sweep's folder name, which groups its runs; None for a single run."""
    hydra = HydraConfig.get()
    return Path(hydra.sweep.dir).name if hydra.mode == RunMode.MULTIRUN else None


def wandb_mode() -> str:
    """Where W&B's runs go: what WANDB_MODE says, else online for users who are logged in and offline for others."""
    mode = os.environ.get("WANDB_MODE")
    if mode:
        return "offline" if mode == "dryrun" else mode
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        if netrc.netrc(os.environ.get("NETRC")).authenticators(host):
            return "online"
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def cores_per_device(devices: int | str | Sequence[int]) -> int:
    """Reading threads or processes for each device of this machine: its share of the cores."""
    if isinstance(devices, str):
        count = torch.cuda.device_count()
    else:
        count = devices if isinstance(devices, int) else len(devices)
    return max(len(os.sched_getaffinity(0)) // max(count, 1), 1)


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
    for resolver in (precision, sweep_name, wandb_mode, cores_per_device, tokens):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)
