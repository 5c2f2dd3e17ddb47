"""What a result says of the machine and the software that it was measured with."""

import os
import platform
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("infvit", "torch", "lightning", "timm", "torchmetrics", "hydra-core", "wandb", "ffcv", "zeus")


def hardware() -> dict[str, Any]:
    """The CPU's name, the cores that this process may use, and the names of the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "gpus": gpus}


def versions() -> dict[str, str]:
    """Python's version and those of the `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line of this process, as a shell takes it."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
