"""Energy as the hardware counts it, through Zeus (ml.energy/zeus): a GPU's by NVML, a CPU's by RAPL. Or nothing."""

import math
from typing import Any

import torch

from infvit.measure.efficiency.timing import Step, seconds_of

WINDOW = 2.0
"""Seconds of work in a reading at least: the counters of GPUs move ten times a second."""

NOT_HERE = "not measurable here"


class Meter:
    """Joules of a step on "cpu" or "cuda", where the machine counts them.

    Attributes:
        note: what the figure covers, or why there is none.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.monitor, self.note = _monitor(device)

    def joules(self, step: Step) -> float | None:
        """Of one step, idle power included; the mean over a `WINDOW`. None where it is not measurable."""
        if self.monitor is None:
            return None
        calls = max(1, math.ceil(WINDOW / seconds_of(step, self.device)))
        self.monitor.begin_window("step", sync_execution=False)  # seconds_of waits for the device itself
        seconds_of(step, self.device, calls)
        found = self.monitor.end_window("step", sync_execution=False)
        counted = [found.gpu_energy] if self.device == "cuda" else [found.cpu_energy, found.dram_energy or {}]
        spent = sum(joules for zones in counted for joules in zones.values())
        return spent / calls if spent > 0 else None  # a counter that stood still has measured nothing


def _monitor(device: str) -> tuple[Any, str]:
    """Zeus' monitor of this device alone, or None, with the note."""
    try:
        from zeus.device.gpu import ZeusGPUInitError, get_gpus
        from zeus.monitor import ZeusMonitor
    except ImportError:
        return None, f"{NOT_HERE}: the package zeus is not installed (pip install 'infvit[experiments]')"
    if device == "cuda":
        try:
            get_gpus()
        except ZeusGPUInitError:
            return None, f"{NOT_HERE}: the GPU does not answer NVML"
        gpu = torch.cuda.current_device()
        return ZeusMonitor(gpu_indices=[gpu], cpu_indices=[]), "the GPU alone, by its own counter"
    monitor = ZeusMonitor(gpu_indices=[])
    # A laptop's "psys" is the whole machine, with the packages in it: counted beside them it would count twice.
    monitor.cpu_indices = [i for i in monitor.cpu_indices if _zone(monitor.cpus.cpus[i]).startswith("package")]
    if not monitor.cpu_indices:
        return None, f"{NOT_HERE}: this CPU shows no energy counter (RAPL), or only to root"
    return monitor, "the CPU's packages, and its memory where counted (RAPL), with all else that runs on them"


def _zone(cpu: Any) -> str:
    """What RAPL calls the zone; Zeus' daemon, which reads for users who are not root, does not tell."""
    return cpu.rapl_file.name if hasattr(cpu, "rapl_file") else "package"
