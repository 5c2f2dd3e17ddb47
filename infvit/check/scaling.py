"""Time and memory of a layer against the number of tokens, beside softmax and Linear-InfSA in the same rounds."""

import ctypes
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from infvit.measure.efficiency.timing import exponent, race
from infvit.measure.subprocess_case import peak_memory, resident_memory
from infvit.tables.numbers import three_digits
from infvit.tables.table import Column, Table

DIM, HEADS, SIZES, ROUNDS = 256, 4, (1024, 2048, 4096), 3

Makers = dict[str, Callable[..., nn.Module]]


class Row(NamedTuple):
    """One layer: by number of tokens ms of a forward pass, and MB held at most by a forward and a backward pass."""

    name: str
    ms: list[float]
    megabytes: list[float]


def time_and_memory(makers: Makers, device: str) -> Table[Row]:
    """The table of all layers, which take turns in each round; in one thread: several wait long for a busy core."""
    layers = {name: make(DIM, num_heads=HEADS).to(device).eval() for name, make in makers.items()}
    rows = [Row(name, [], []) for name in layers]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for N in SIZES:
        x = torch.randn(1, N, DIM, device=device)
        with torch.inference_mode():
            seconds = race({name: partial(layer, x) for name, layer in layers.items()}, ROUNDS, device)
        for row in rows:
            row.ms.append(1e3 * statistics.median(seconds[row.name]))
            row.megabytes.append(bytes_held(partial(_both_passes, layers[row.name], x), device) / 1e6)
    torch.set_num_threads(threads)
    times = [Column(f"{'ms at ' * (i == 0)}{N:,}", partial(_time, i), three_digits) for i, N in enumerate(SIZES)]
    columns: list[Column[Row]] = [
        Column("layer", lambda row: row.name, left=True),
        *times,
        Column("∝ N^p", lambda row: exponent(SIZES, row.ms), "{:.2f}".format),
        Column(f"MB at {SIZES[-1]:,}", lambda row: row.megabytes[-1], three_digits),
        Column("∝ N^p", lambda row: exponent(SIZES, row.megabytes), "{:.2f}".format),
    ]
    title = (
        f"Time of a forward pass and memory of both passes against the tokens: D {DIM}, {HEADS} heads, one image, "
        f"float32, {'one CPU thread' if device == 'cpu' else device}, median of {ROUNDS} rounds in turns"
    )
    return Table(columns, rows, title)


def bytes_held(call: Callable[[], object], device: str) -> int:
    """The most that this process, or torch on the GPU, holds during a call beyond what it held before."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        return torch.cuda.max_memory_allocated() - before
    ctypes.CDLL(None).malloc_trim(0)  # returns what was freed, which the call would use again
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_memory()
    call()
    return peak_memory() - before


def _both_passes(layer: nn.Module, x: Tensor) -> None:
    layer(x.clone().requires_grad_()).sum().backward()


def _time(place: int, row: Row) -> float:
    return row.ms[place]
