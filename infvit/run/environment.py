"""The machine, the software and the command of a result."""

import os
import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("infvit", "torch", "lightning", "timm", "torchmetrics", "hydra-core", "wandb", "ffcv", "zeus")

SWEEP_COMMAND = "INFVIT_SWEEP_COMMAND"
"""Environment variable with the command of the sweep, which its jobs inherit on whatever node they run."""

SWEEP_FOLDER = "INFVIT_SWEEP_FOLDER"
"""Environment variable with the folder of the sweep that this process runs."""


def hardware() -> dict[str, Any]:
    """The CPU's name, the number of cores that this process may use, and the names of the GPUs."""
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cpu = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line]
        cpu = names[0] if names else cpu
    return {"cpu": cpu, "cores": len(os.sched_getaffinity(0)), "gpus": gpus}


def versions() -> dict[str, str]:
    """The versions of Python and of those `PACKAGES` that are installed."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of this code, with "+changes" if files differ from it; None outside of a repository."""
    try:
        return _git("rev-parse", "--short=12", "HEAD").decode().strip() + ("+changes" if _git("status", "-s") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def git_changes(most: int = 2**20) -> bytes:
    """What differs from the commit, as `git diff HEAD` writes it, at most so many bytes; files without history by name.

    Empty outside of a repository.
    """
    try:
        changes, new = _git("diff", "--no-ext-diff", "HEAD"), _git("ls-files", "--others", "--exclude-standard")
    except (OSError, subprocess.CalledProcessError):
        return b""
    cut = f"\n# cut after {most:,} of {len(changes):,} bytes\n".encode() * (len(changes) > most)
    return changes[:most] + cut + b"".join(b"# untracked: " + name for name in new.splitlines(keepends=True))


def _git(*arguments: str) -> bytes:
    return subprocess.check_output(["git", *arguments], cwd=Path(__file__).parents[2], stderr=subprocess.DEVNULL)


def command() -> str:
    """The command line of this process, quoted for a shell."""
    return shlex.join(["python", Path(sys.argv[0]).name, *sys.argv[1:]])
