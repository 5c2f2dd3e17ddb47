"""The two passes that are measured, forward and a whole training step, and the memory that they need."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from infvit.measure.efficiency.timing import Step, seconds_of
from infvit.measure.subprocess_case import peak_memory, resident_memory

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
FORWARD, TRAINING = "forward", "training"

STEPS = {FORWARD: 1, TRAINING: 2}
"""Steps after which memory has reached its peak: the optimizer's moments stay from the first step on."""

IN_CHANS = 3


@dataclass(frozen=True)
class PassSetting:
    """How every pass runs.

    Attributes:
        device: "cpu" or "cuda".
        precision: one of `PRECISIONS`. The forward pass has weights and images in it; training keeps weights and
            moments in float32 under autocast, as Lightning's "bf16-mixed" does, and scales gradients for fp16.
        batch_size: images in a pass.
        compile: whether models go through torch.compile.
    """

    device: str = "cpu"
    precision: str = "fp32"
    batch_size: int = 1
    compile: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return PRECISIONS[self.precision]


@dataclass(frozen=True)
class Footprint:
    """Time and memory of a pass in a process of its own.

    Attributes:
        seconds: of the last of its `STEPS`, hardly warmed up: an estimate for what follows, not a result.
        peak: bytes; on CUDA peak memory of the tensors, on a CPU peak resident memory of the process with libraries.
        added: the part of the peak that came with the model; on CUDA all of it.
        held: the part that stays between two passes: weights, gradients, moments, images.
    """

    seconds: float
    peak: int
    added: int
    held: int


def make_step(kind: str, make: Callable[[], nn.Module], side: int, setting: PassSetting) -> Step:
    """Returns a step on random images of `side` pixels.

    A forward step is a forward pass in inference mode; a training step is forward, cross-entropy, backward, AdamW, and
    gradients cleared.
    """
    device, training = torch.device(setting.device), kind == TRAINING
    dtype = torch.float32 if training else setting.dtype
    model = make().to(device, dtype).train(training)
    images = torch.randn(setting.batch_size, IN_CHANS, side, side, device=device, dtype=dtype)
    if setting.compile:
        model.compile()
    if not training:
        return torch.inference_mode()(lambda: model(images))
    labels = torch.zeros(setting.batch_size, dtype=torch.long, device=device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    scaler = torch.amp.GradScaler(setting.device, enabled=setting.precision == "fp16")

    def step() -> None:
        with torch.autocast(setting.device, setting.dtype, enabled=setting.precision != "fp32"):
            loss = F.cross_entropy(model(images), labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()

    return step


def footprint(kind: str, make: Callable[[], nn.Module], side: int, setting: PassSetting) -> Footprint:
    """Runs the pass until its memory has reached its peak; for a process that has done nothing else before."""
    before = resident_memory()
    step = make_step(kind, make, side, setting)
    if setting.compile:  # the compiler's own memory and time are not the model's
        seconds_of(step, setting.device)
        if setting.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is held now
    for _ in range(STEPS[kind]):
        seconds = seconds_of(step, setting.device)
    if setting.device == "cuda":
        peak, held = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
        return Footprint(seconds, peak, peak, held)
    peak = peak_memory()
    return Footprint(seconds, peak, peak - before, max(resident_memory() - before, 0))


def fitting_together(footprints: dict[str, Footprint], free: float) -> list[str]:
    """The names that can take turns in one process of `free` bytes, taken in order.

    All hold their weights all the time, and one at a time reaches its peak above that.
    """
    chosen: list[str] = []
    held = largest = 0
    for name, found in footprints.items():
        more, above = held + found.held, max(largest, found.added - found.held)
        if more + above <= free:
            chosen.append(name)
            held, largest = more, above
    return chosen
