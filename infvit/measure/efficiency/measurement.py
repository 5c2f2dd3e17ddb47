"""`eval=efficiency`: time, memory, energy and share of the machine's peak of models at a list of resolutions.

Each case (a model at a resolution, forward or a training step) first runs in a process of its own, which measures its
memory and whether it finishes at all. Those that do are then timed in this process, in rounds in which all of them and
the machine's fastest matrix product take turns.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from infvit.errors import UsageError, expect
from infvit.measure.cost import cost
from infvit.measure.efficiency.case import PRODUCT, Case, Efficiency
from infvit.measure.efficiency.energy import EnergyMeter
from infvit.measure.efficiency.matmul_peak import fastest, matrix_product
from infvit.measure.efficiency.passes import (
    FORWARD,
    STEPS,
    TRAINING,
    Footprint,
    PassSetting,
    fitting_together,
    footprint,
    make_step,
)
from infvit.measure.efficiency.plots import write_plots
from infvit.measure.efficiency.table import to_markdown, to_text
from infvit.measure.efficiency.timing import race
from infvit.measure.model_source import ModelSource
from infvit.measure.shape import shape
from infvit.measure.subprocess_case import DONE, TOO_SLOW, free_memory, run_isolated
from infvit.run.environment import command, hardware, versions
from infvit.run.files import atomic_write
from infvit.tables.numbers import duration

ENERGY_READINGS = 3
"""Per case."""

MakeModel = partial[nn.Module]


def efficiency(
    source: ModelSource,
    out: Path,
    models: Sequence[str],
    resolutions: Sequence[int],
    size_name: str,
    passes: Sequence[Literal["forward", "training"]],
    rounds: int,
    batch_size: int,
    precision: Literal["fp32", "bf16", "fp16"],
    compile: bool,
    device: Literal["cpu", "cuda"] | None,
    time_limit: float,
    memory_limit: float | None,
) -> None:
    """Measures, prints tables, and writes `efficiency.json`, `efficiency.md` and a chart for each pass.

    conf/eval/efficiency.yaml explains the arguments; `size_name` is for the record ("large4 size.depth=12").

    Raises:
        UsageError: before anything runs, for a model, a resolution or an option that cannot be used.
    """
    setting = PassSetting(_device(device), precision, batch_size, compile)
    lists = f"models={list(models)} resolutions={list(resolutions)} passes={list(passes)}"
    expect(min(map(len, (models, resolutions, passes))) > 0, lists, "at least one of each, as models=[vit,infvit]")
    expect(min(resolutions) >= 1, f"resolutions={list(resolutions)}", "sides in pixels, as [224,512]")
    expect(rounds >= 2, f"rounds={rounds}", "at least 2, because one round has no spread")
    expect(batch_size >= 1, f"batch_size={batch_size}", "at least 1")
    expect(time_limit > 0, f"time_limit={time_limit}", "seconds above 0")
    sides = sorted(set(resolutions))
    pairs = product(dict.fromkeys(models), sides)
    make = {(model, side): source.untrained(model, f"size.image_size={side}") for model, side in pairs}
    planned = [case for key, maker in make.items() for case in _cases(*key, maker, passes, batch_size)]

    torch.manual_seed(0)
    n, peak = fastest(setting)
    _release_memory(setting.device)
    meter = EnergyMeter(setting.device)
    result = Efficiency(
        size=size_name,
        setting=setting,
        rounds=rounds,
        time_limit=time_limit,
        threads=torch.get_num_threads(),
        float32_matmul_precision=torch.get_float32_matmul_precision(),
        product=n,
        energy=meter.note,
        hardware=hardware(),
        versions=versions(),
        command=command(),
    )
    print(f"fastest matrix product here: {n} × {n}, {peak / 1e9:,.0f} GFLOP/s", flush=True)
    limits = time_limit, None if memory_limit is None else int(memory_limit * 1e9)
    for side, kind in product(sides, passes):
        cases = [case for case in planned if (case.resolution, case.kind) == (side, kind)]
        alone = {case.model: _run_alone(case, make[case.model, side], setting, peak, *limits) for case in cases}
        _time_in_rounds(cases, {model: found for model, found in alone.items() if found}, make, result, meter)
        result.cases += cases
        _write(result, out)  # after each, so that an interrupted measurement leaves what it has
    print(f"\n{to_text(result)}\n{out / 'efficiency.json'}")


def _device(requested: str | None) -> str:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if requested == "cuda" and found == "cpu":
        raise UsageError("device=cuda: torch finds no GPU here: use device=cpu")
    return requested or found


def _cases(model: str, side: int, make: MakeModel, passes: Sequence[str], batch_size: int) -> list[Case]:
    """The cases of a model at a resolution, with their counts; UsageError if the resolution does not fit."""
    with torch.device("meta"):
        net = make()
    patch = shape(net).patch
    if patch and side % patch:
        below = max(side // patch, 1) * patch
        raise UsageError(
            f"resolutions: {model} cannot take {side} pixels, expected a multiple of its patch size {patch}: "
            f"{below} or {below + patch}"
        )
    tokens = (side // patch) ** 2 + getattr(net, "num_prefix_tokens", 0) if patch else None
    counts = cost(net, side)
    flops = {FORWARD: counts.flops_forward, TRAINING: counts.flops_training}
    of_passes = [(kind, flops[kind]) for kind in passes]
    return [Case(model, side, kind, tokens, counts.parameters, n and n // 2, n, batch_size) for kind, n in of_passes]


def _run_alone(
    case: Case, make: MakeModel, setting: PassSetting, peak: float, time_limit: float, memory_limit: int | None
) -> Footprint | None:
    """Runs the case in its own process and sets its status, note and memory; returns its footprint if it is done."""
    found: Footprint | None = None
    at_least = STEPS[case.kind] * (case.flops or 0) * case.batch_size / peak
    if at_least > time_limit:
        case.status = TOO_SLOW
        case.note = f"not started: at the measured peak its products alone take {duration(at_least)}"
    else:
        outcome = run_isolated(partial(footprint, case.kind, make, case.resolution, setting), time_limit, memory_limit)
        case.status, case.note, found = outcome.status, outcome.note, outcome.value
    if found is not None:
        case.peak_bytes, case.added_bytes = found.peak, found.added
    figure = case.note if found is None else f"{found.peak / 1e9:.2f} GB"
    print(f"{case.resolution} px, {case.kind}, {case.model}: {case.status}, {figure}", flush=True)
    return found


def _time_in_rounds(
    cases: list[Case],
    footprints: dict[str, Footprint],
    make: dict[tuple[str, int], MakeModel],
    result: Efficiency,
    meter: EnergyMeter,
) -> None:
    """Sets times and energy of the cases with a footprint, as many as fit into memory together."""
    setting, n = result.setting, result.product
    free = torch.cuda.mem_get_info()[0] if setting.device == "cuda" else free_memory()
    fitting = fitting_together(footprints, 0.9 * free)
    timed = [case for case in cases if case.model in fitting]
    for case in cases:
        if case.status == DONE and case not in timed:
            case.note = "not timed: beside the others it does not fit in memory; name fewer models"
    if not timed:
        return
    side, kind = cases[0].resolution, cases[0].kind
    steps = {case.model: make_step(kind, make[case.model, side], side, setting) for case in timed}
    about = (result.rounds + 2) * sum(footprints[case.model].seconds for case in timed)
    print(f"{side} px, {kind}: {result.rounds} rounds, about {duration(about)}", flush=True)
    seconds = race({**steps, PRODUCT: matrix_product(n, setting)}, result.rounds, setting.device)
    for case in timed:
        case.seconds = seconds[case.model]
        case.peak_flops_per_second = [2 * n**3 / s for s in seconds[PRODUCT]]
    for _ in range(ENERGY_READINGS):
        for case in timed:
            joules = meter.joules(steps[case.model])
            case.joules += [] if joules is None else [joules]
    del steps
    _release_memory(setting.device)


def _release_memory(device: str) -> None:
    """Frees unused memory for the processes that follow; models may be in reference cycles."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _write(result: Efficiency, out: Path) -> None:
    content = asdict(result)
    content["rows"] = [case.row(result.cases) for case in result.cases]
    atomic_write(out / "efficiency.json", json.dumps(content, indent=2) + "\n")
    (out / "efficiency.md").write_text(to_markdown(result), encoding="utf-8")
    write_plots(result, out)
