"""What models cost at a list of resolutions: time, memory, energy, and how near they come to the machine's limit.

Each case (a model at a resolution, forward or a training step) first runs in a process of its own, which tells its
memory and whether it fits into memory and time at all. Those that do then race in this process, in rounds, with the
machine's fastest matrix product among them.
"""

import gc
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from infvit.compare.render import duration
from infvit.errors import UsageError
from infvit.measure.cost import Cost, cost
from infvit.measure.efficiency.case import PRODUCT, Case
from infvit.measure.efficiency.energy import Meter
from infvit.measure.efficiency.matmul_peak import fastest, product
from infvit.measure.efficiency.passes import (
    PASSES,
    PRECISIONS,
    STEPS,
    TRAINING,
    Footprint,
    Setting,
    footprint,
    together,
)
from infvit.measure.efficiency.plots import write_plots
from infvit.measure.efficiency.table import to_markdown, to_text
from infvit.measure.efficiency.timing import race
from infvit.measure.model_source import ModelSource
from infvit.measure.shape import shape
from infvit.measure.subprocess_case import DONE, OUT_OF_MEMORY, TOO_SLOW, alone, free_memory
from infvit.run.environment import command, hardware, versions
from infvit.run.files import atomic_write

READINGS = 3
"""Of energy, for each case."""


@dataclass
class Efficiency:
    """The whole measurement, as `efficiency.json` holds it.

    `product` is the side of the square matrices whose product is the fastest here.
    """

    size: str
    setting: Setting
    rounds: int
    time_limit: float
    threads: int
    float32_matmul_precision: str
    product: int
    energy: str
    hardware: dict[str, Any]
    versions: dict[str, str]
    command: str
    cases: list[Case] = field(default_factory=list)


def efficiency(
    source: ModelSource,
    out: Path,
    models: Sequence[str],
    resolutions: Sequence[int],
    size_name: str,
    passes: Sequence[str] = tuple(PASSES),
    rounds: int = 7,
    batch_size: int = 1,
    precision: str = "fp32",
    compile: bool = False,
    device: str | None = None,
    time_limit: float = 300.0,
    memory_limit: float | None = None,
) -> None:
    """Measures, prints tables, and writes `efficiency.json`, `efficiency.md` and a picture for each pass.

    Args:
        models: names in conf/model.
        resolutions: sides of the square images in pixels.
        size_name: the size of all models, for the record ("large4", "large4 size.depth=12").
        passes: "forward", "training" or both.
        rounds: in which all models of a resolution take turns.
        batch_size, precision, compile: see `Setting`.
        device: "cpu" or "cuda"; None for a GPU where there is one.
        time_limit: seconds for a case in a process of its own, from its start: 1 forward pass, or 2 training steps.
        memory_limit: GB that such a process may hold on the host; None for nine tenths of what is free.

    Raises:
        UsageError: before anything runs, if a model, a resolution or an option is not one.
    """
    setting = Setting(_device(device), precision, batch_size, compile)
    _check(models, resolutions, passes, rounds, setting, time_limit)
    makers = {
        (model, side): source.untrained(model, f"size.image_size={side}")
        for model in dict.fromkeys(models)
        for side in sorted(set(resolutions))
    }
    counts = {key: _count(key, make) for key, make in makers.items()}

    torch.manual_seed(0)
    n, peak = fastest(setting)
    _free_memory(setting.device)
    meter = Meter(setting.device)
    result = Efficiency(
        size_name,
        setting,
        rounds,
        time_limit,
        torch.get_num_threads(),
        torch.get_float32_matmul_precision(),
        n,
        meter.note,
        hardware(),
        versions(),
        command(),
    )
    print(f"fastest matrix product here: {n} × {n}, {peak / 1e9:,.0f} GFLOP/s", flush=True)
    for side in sorted(set(resolutions)):
        for kind in passes:
            cases = [_case(kind, model, side, counts[model, side], batch_size) for model, px in makers if px == side]
            prints = {}
            for case in cases:
                found = _run_alone(case, makers[case.model, side], setting, peak, time_limit, memory_limit)
                if found:
                    prints[case.model] = found
            _race(cases, prints, {model: makers[model, side] for model in prints}, result, meter)
            result.cases += cases
            _write(result, out)  # what is measured is not lost with what follows
    print(f"\n{to_text(result)}\n{out / 'efficiency.json'}")


def _check(
    models: Sequence[str],
    resolutions: Sequence[int],
    passes: Sequence[str],
    rounds: int,
    setting: Setting,
    time_limit: float,
) -> None:
    if not models or not resolutions:
        raise UsageError("models and resolutions are lists: expected at least one of each, as models=[vit,infvit]")
    for side in resolutions:
        if not isinstance(side, int) or side < 1:
            raise UsageError(f"resolutions={list(resolutions)}: {side!r} is no number of pixels, as in [224,512]")
    unknown = [kind for kind in passes if kind not in PASSES]
    if unknown or not passes:
        raise UsageError(f"passes={list(passes)}: expected some of {', '.join(PASSES)}")
    if setting.precision not in PRECISIONS:
        raise UsageError(f"precision={setting.precision}: expected one of {', '.join(PRECISIONS)}")
    if rounds < 2:
        raise UsageError(f"rounds={rounds}: one round has no spread, expected at least 2")
    if setting.batch_size < 1:
        raise UsageError(f"batch_size={setting.batch_size}: expected at least 1")
    if time_limit <= 0:
        raise UsageError(f"time_limit={time_limit}: expected seconds above 0")


def _device(asked: str | None) -> str:
    found = "cuda" if torch.cuda.is_available() else "cpu"
    if asked not in (None, "cpu", "cuda"):
        raise UsageError(f"device={asked}: expected cpu or cuda")
    if asked == "cuda" and found == "cpu":
        raise UsageError("device=cuda: torch finds no GPU here: use device=cpu")
    return asked or found


def _count(key: tuple[str, int], make: "partial[nn.Module]") -> tuple[Cost, int | None]:
    """Counts of the model, and its tokens if it has one size of patch; a resolution that it cannot take is refused."""
    model, side = key
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
    return cost(net, side), tokens


def _case(kind: str, model: str, side: int, counted: tuple[Cost, int | None], batch_size: int) -> Case:
    counts, tokens = counted
    flops = counts.flops_training if kind == TRAINING else counts.flops_forward
    return Case(model, side, kind, tokens, counts.parameters, flops and flops // 2, flops, batch_size)


def _run_alone(
    case: Case,
    make: "partial[nn.Module]",
    setting: Setting,
    peak: float,
    time_limit: float,
    memory_limit: float | None,
) -> Footprint | None:
    """The case in a process of its own; its status, its memory and, if it is done, all that it found."""
    least = STEPS[case.kind] * (case.flops or 0) * case.batch_size / peak
    if least > time_limit:
        case.status = TOO_SLOW
        case.note = f"not started: at the measured peak its products alone take {duration(least)}"
    else:
        limits = time_limit, int(memory_limit * 1e9) if memory_limit else None
        outcome = alone(partial(footprint, case.kind, make, case.resolution, setting), *limits)
        case.status, case.note = outcome.status, outcome.note
        if outcome.status == OUT_OF_MEMORY and setting.batch_size > 1:
            case.note += f"; {_what_fits(case, make, setting, *limits)}"
        if outcome.status == DONE:
            case.peak_bytes, case.added_bytes = outcome.value.peak, outcome.value.added
    told = f"{case.peak_bytes / 1e9:.2f} GB" if case.peak_bytes else case.note
    print(f"{case.resolution} px, {case.kind}, {case.model}: {case.status}, {told}", flush=True)
    return outcome.value if case.status == DONE else None


def _what_fits(
    case: Case, make: "partial[nn.Module]", setting: Setting, time_limit: float, memory_limit: int | None
) -> str:
    """The largest half, quarter, ... of the batch that runs."""
    size = setting.batch_size // 2
    while size:
        work = partial(footprint, case.kind, make, case.resolution, replace(setting, batch_size=size))
        if alone(work, time_limit, memory_limit).status == DONE:
            return f"batch_size={size} fits"
        size //= 2
    return "nor does batch_size=1 run"


def _race(
    cases: list[Case],
    prints: dict[str, Footprint],
    makers: dict[str, "partial[nn.Module]"],
    result: Efficiency,
    meter: Meter,
) -> None:
    """Times of those that are done, and their energy."""
    setting, n = result.setting, result.product
    free = torch.cuda.mem_get_info()[0] if setting.device == "cuda" else free_memory()
    fitting = together(prints, 0.9 * free)
    entrants = [case for case in cases if case.model in fitting]
    for case in cases:
        if case.status == DONE and case not in entrants:
            case.note = "not timed: beside the others it does not fit in memory; name fewer models"
    if not entrants:
        return
    steps = {case.model: PASSES[case.kind](makers[case.model], case.resolution, setting) for case in entrants}
    about = (result.rounds + 2) * sum(prints[case.model].seconds for case in entrants)
    print(f"{cases[0].resolution} px, {cases[0].kind}: {result.rounds} rounds, about {duration(about)}", flush=True)
    seconds = race({**steps, PRODUCT: product(n, setting)}, result.rounds, setting.device)
    for case in entrants:
        case.seconds = seconds[case.model]
        case.peak_flops_per_second = [2 * n**3 / s for s in seconds[PRODUCT]]
    for _ in range(READINGS):
        for case in entrants:
            joules = meter.joules(steps[case.model])
            case.joules += [] if joules is None else [joules]
    del steps
    _free_memory(setting.device)


def _free_memory(device: str) -> None:
    """Gives back what is held for nothing: the processes that follow need it, and models may stand in cycles."""
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def _write(result: Efficiency, out: Path) -> None:
    content = asdict(result)
    content["rows"] = [case.row(result.cases) for case in result.cases]
    atomic_write(out / "efficiency.json", json.dumps(content, indent=2) + "\n")
    (out / "efficiency.md").write_text(to_markdown(result))
    write_plots(result, out)
