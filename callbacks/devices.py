"""The devices that a run asks for: are they there, and does each worker of a distributed job run that one job?"""

import sys
from typing import Any, cast

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, open_dict, read_write

from infvit.errors import UsageError


def check_devices(trainer: DictConfig) -> None:
    """Raises UsageError if GPUs are asked for that are not there.

    Several devices mean GPUs unless the accelerator says otherwise: eight slow CPU processes in the place of eight
    GPUs would be a surprise.
    """
    asked = _count(trainer.devices)
    if trainer.accelerator in ("gpu", "cuda") or (trainer.accelerator == "auto" and asked > 1):
        found = torch.cuda.device_count()
        if found < max(asked, 1):
            raise UsageError(
                f"trainer.devices={trainer.devices} trainer.accelerator={trainer.accelerator} asks for GPUs that are "
                f"not there, found {found}: use trainer.devices={max(found, 1)}"
                + ("" if found else " trainer.accelerator=cpu, or trainer=ddp_cpu for several processes")
            )


def _count(devices: Any) -> int:
    if isinstance(devices, str) and not devices.lstrip("-").isdigit():
        return 0 if devices == "auto" else len([d for d in devices.split(",") if d])
    if isinstance(devices, int | str):
        return max(int(devices), 0)
    return len(devices)


def workers_run_this_job() -> None:
    """Makes the processes that Lightning starts for a distributed job of a sweep run that job, in its folder.

    Lightning repeats the command line of this process, which under `--multirun` would start a whole sweep in each
    worker (Lightning issue 11300). The command becomes the job's own: its overrides and its output folder.
    """
    cfg = HydraConfig.get()
    if cfg.mode != RunMode.MULTIRUN:
        return
    sys.argv[1:] = list(cfg.overrides.task)
    config = cast(DictConfig, HydraConfig.instance().cfg)
    with read_write(config), open_dict(config):
        config.hydra.run.dir = cfg.runtime.output_dir
