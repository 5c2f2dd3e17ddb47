"""Energy from the hardware's counters, through Zeus (ml.energy/zeus): NVML on a GPU, RAPL on a CPU."""

import math
from typing import Any

import torch

from infvit.measure.efficiency.timing import Step, seconds_of

WINDOW = 2.0
"""Minimum seconds of work in a reading: the counters of GPUs are updated ten times a second."""

NOT_HERE = "not measurable here"


class EnergyMeter:
    """Measures the joules of a step on "cpu" or "cuda", if the machine counts them.

    Attributes:
        note: what the joules cover, or why there are none.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self.monitor, self.note = _monitor(device)

    def joules(self, step: Step) -> float | None:
        """Joules of one step, idle power included, averaged over a `WINDOW`; None if they are not measurable."""
        if self.monitor is None:
            return None
        calls = max(1, math.ceil(WINDOW / seconds_of(step, self.device)))
        self.monitor.begin_window("step", sync_execution=False)  # seconds_of waits for the device itself
        seconds_of(step, self.device, calls)
        found = self.monitor.end_window("step", sync_execution=False)
        counted = [found.gpu_energy] if self.device == "cuda" else [found.cpu_energy, found.dram_energy or {}]
        spent = sum(joules for zones in counted for joules in zones.values())
        return spent / calls if spent > 0 else None  # the counter did not move


def _monitor(device: str) -> tuple[Any, str]:
    """(Zeus' monitor of this device alone, or None; the note)."""
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
    # A laptop's "psys" is the whole machine and includes the packages, which would be counted twice.
    monitor.cpu_indices = [i for i in monitor.cpu_indices if _zone(monitor.cpus.cpus[i]).startswith("package")]
    if not monitor.cpu_indices:
        return None, f"{NOT_HERE}: this CPU shows no energy counter (RAPL), or only to root"
    return monitor, "the CPU's packages, and its memory where counted (RAPL), with all else that runs on them"


def _zone(cpu: Any) -> str:
    """RAPL's name of the zone; Zeus' daemon, which reads for users who are not root, does not have it."""
    return cpu.rapl_file.name if hasattr(cpu, "rapl_file") else "package"
