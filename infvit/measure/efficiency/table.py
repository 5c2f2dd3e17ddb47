"""The efficiency measurement as text: small tables of at most 80 columns for a terminal, wide ones for Markdown."""

import textwrap
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from infvit.measure.efficiency.case import BASELINES, Case, Efficiency, exponents
from infvit.measure.efficiency.passes import FORWARD, TRAINING
from infvit.measure.efficiency.timing import Spread
from infvit.tables.numbers import NOTHING, amount

WIDTH = 80
PUBLISHED_FILE = Path(__file__).with_name("published_efficiency.yaml")
TITLES = {FORWARD: "Forward pass", TRAINING: "Training step: forward, backward, AdamW"}
Columns = dict[str, Callable[[Case], str]]
Table = tuple[list[str], list[list[str]]]


def to_text(result: Efficiency) -> str:
    """Everything for a terminal."""
    blocks = ["\n".join(_wrapped(line) for line in about(result)), _aligned(*_counts(result))]
    for kind in _kinds(result):
        first, second = _times(result), _comparisons(result, kind)
        for columns in (first, second):
            blocks.append(f"{TITLES[kind]}\n{_aligned(*_table(result, kind, columns))}")
    blocks += [_aligned(*table) for table in (_fitted(result), _published(result)) if table]
    notes = [*_remarks(result), *explained(result)]
    return "\n\n".join([*blocks, "\n".join(map(_wrapped, notes))]) + "\n"


def to_markdown(result: Efficiency) -> str:
    """The same for a page, one table for each pass; the pictures that lie beside it are shown."""
    lines = ["# Efficiency", "", *(f"- {line}" for line in about(result)), "", *_markdown(*_counts(result))]
    for kind in _kinds(result):
        columns = _times(result) | _comparisons(result, kind)
        lines += ["", f"## {TITLES[kind]}", "", *_markdown(*_table(result, kind, columns))]
        if any(case.timed for case in result.cases if case.kind == kind):
            lines += ["", f"![{TITLES[kind]}: time and memory](efficiency_{kind}.png)"]
    for table in (_fitted(result), _published(result)):
        lines += ["", *_markdown(*table)] if table else []
    return "\n".join([*lines, "", *(f"- {line}" for line in (*_remarks(result), *explained(result)))]) + "\n"


def about(result: Efficiency) -> list[str]:
    """What was run on what."""
    machine, setting = result.hardware, result.setting
    where = (
        ", ".join(machine["gpus"])
        if setting.device == "cuda"
        else f"{machine['cpu']}, {result.threads} thread{'s' * (result.threads > 1)}"
    )
    peaks = [rate for case in result.cases for rate in case.peak_flops_per_second]
    peak = f"{_spread(Spread.of(peaks), lambda x: f'{x / 1e9:,.0f}')} GFLOP/s" if peaks else NOTHING
    compiled = "compiled" if setting.compile else "not compiled"
    exact = setting.device == "cuda" and setting.precision == "fp32"
    return [
        f"size {result.size}, batch {setting.batch_size}, {setting.precision}"
        + (f" (float32 products at {result.float32_matmul_precision!r})" if exact else "")
        + f", {compiled}, {result.rounds} rounds, at most {result.time_limit:,.0f} s for a case alone",
        f"{where}, torch {result.versions['torch']}, Python {result.versions['python']}",
        f"matrix-multiply peak in the same rounds: {peak} ({setting.precision}, {result.product} × {result.product})",
        f"energy: {result.energy}",
        result.command,
    ]


def explained(result: Efficiency) -> list[str]:
    """What the numbers mean."""
    covered = 100 * (1 - 2 ** (1 - result.rounds))
    lines = [
        f"Times: the median of {result.rounds} rounds in which all take turns (smallest – largest). Independent rounds "
        f"enclose the true median so with probability {covered:.1f}%. Ratios and shares are taken within each round.",
        "Counts are for one image: FLOPs are 2 per multiply-add, of products, convolutions and fused attention alone; "
        "those of a training step are of both passes. The share of the peak is of these FLOPs in the time of it all.",
    ]
    told = {"vit": "softmax through the fused kernel", "vit_unfused": "softmax that holds its N × N matrix"}
    lines += [f"vs {name}: how many times as fast as {told[name]}." for name in _baselines(result)]
    if result.setting.device == "cuda":
        return [*lines, "Memory: the most that tensors held on the GPU."]
    return [*lines, "Memory: the largest resident memory of a process of its own; in brackets without its libraries."]


def _times(result: Efficiency) -> Columns:
    def memory(case: Case) -> str:
        added = "" if result.setting.device == "cuda" else f" ({_bytes(case.added_bytes)})"
        return _bytes(case.peak_bytes) + added if case.peak_bytes else NOTHING

    columns: Columns = {
        "ms": lambda case: _spread(case.time, lambda s: _three(1e3 * s)) if case.seconds else case.status,
        "images/s": lambda case: _three(case.images_per_second.median) if case.images_per_second else NOTHING,
        "memory, GB": memory,
    }
    if any(case.joules for case in result.cases):
        columns["J/image"] = lambda case: _three(case.joules_per_image.median) if case.joules_per_image else NOTHING
    return columns


def _comparisons(result: Efficiency, kind: str) -> Columns:
    columns: Columns = {
        "GFLOP/s": lambda case: _three(case.flops_per_second.median / 1e9) if case.flops_per_second else NOTHING,
        "of peak": lambda case: f"{100 * case.share_of_peak.median:.0f}%" if case.share_of_peak else NOTHING,
    }
    for name in _baselines(result):
        if any(case.timed for case in result.cases if (case.model, case.kind) == (name, kind)):
            columns[f"vs {name}"] = lambda case, name=name: _faster(case, name, result.cases)  # type: ignore[misc]
    return columns


def _baselines(result: Efficiency) -> list[str]:
    return [name for name in BASELINES if any(case.model == name and case.timed for case in result.cases)]


def _faster(case: Case, baseline: str, cases: Sequence[Case]) -> str:
    if case.model == baseline:
        return "1"
    return _spread(case.faster_than(case.baselines(cases)[baseline]), lambda x: f"{x:.2f}", "x")


def _table(result: Efficiency, kind: str, columns: Columns) -> Table:
    cases = [case for case in result.cases if case.kind == kind]
    rows, before = [], None
    for case in cases:
        px = "" if case.resolution == before else str(case.resolution)
        rows.append([px, case.model, *(cell(case) for cell in columns.values())])
        before = case.resolution
    return ["px", "model", *columns], rows


def _counts(result: Efficiency) -> Table:
    """Parameters, MACs and FLOPs of each model at each resolution."""
    heads = ["px", "tokens", "model", "params", "MACs"]
    rows: dict[tuple[int, str], list[str]] = {}
    kinds = _kinds(result)
    for case in sorted(result.cases, key=lambda c: c.resolution):
        tokens = NOTHING if case.tokens is None else f"{case.tokens:,}"
        start = [str(case.resolution), tokens, case.model, amount(case.parameters)]
        row = rows.setdefault((case.resolution, case.model), [*start, NOTHING, *[NOTHING] * len(kinds)])
        row[5 + kinds.index(case.kind)] = amount(case.flops)
        if case.kind == FORWARD:
            row[4] = amount(case.macs)
    return [*heads, *(f"FLOPs, {kind}" for kind in kinds)], list(rows.values())


def _fitted(result: Efficiency) -> Table | None:
    """The exponents of time against tokens."""
    kinds = _kinds(result)
    fits = {kind: exponents(result.cases, kind) for kind in kinds}
    models = [m for m in dict.fromkeys(c.model for c in result.cases) if any(m in fit for fit in fits.values())]
    if not models:
        return None
    cells = [[f"{fits[k][m]:.2f}" if m in fits[k] else NOTHING for k in kinds] for m in models]
    return ["time ∝ tokens^p: p", *kinds], [[m, *row] for m, row in zip(models, cells, strict=True)]


def _published(result: Efficiency) -> Table | None:
    """What others have published for these sizes: numbers of other machines, not measured here."""
    setting = result.setting
    here = {(c.model, c.resolution) for c in result.cases if c.kind == FORWARD}
    fitting = [
        entry
        for entry in published_efficiency()
        if (entry["of"]["size"], entry["of"]["batch_size"]) == (result.size, setting.batch_size)
        and any(model in entry["of"]["models"] and side == entry["of"]["resolution"] for model, side in here)
    ]
    if not fitting:
        return None
    heads = ["published, not measured here", "px", "ms", "images/s", "J/image"]
    rows = []
    for entry in fitting:
        numbers = entry["numbers"]
        figures = [str(numbers[name]) for name in ("milliseconds", "images_per_second", "joules_per_image")]
        rows.append([entry["name"], str(entry["of"]["resolution"]), *figures])
    return heads, rows


@cache
def published_efficiency() -> list[dict[str, Any]]:
    """The entries of `published_efficiency.yaml`."""
    content: list[dict[str, Any]] = yaml.safe_load(PUBLISHED_FILE.read_text(encoding="utf-8"))
    return content


def _remarks(result: Efficiency) -> list[str]:
    """Why a case has no figure, and whose the published ones are."""
    lines = [f"{c.resolution} px, {c.kind}, {c.model}: {c.status}, {c.note}" for c in result.cases if c.note]
    if _published(result):
        lines += sorted({f"published: {entry['source']}, {entry['hardware']}" for entry in published_efficiency()})
    return lines


def _kinds(result: Efficiency) -> list[str]:
    return list(dict.fromkeys(case.kind for case in result.cases))


def _spread(spread: Spread | None, form: Callable[[float], str], unit: str = "") -> str:
    if spread is None:
        return NOTHING
    return f"{form(spread.median)}{unit} ({form(spread.low)} – {form(spread.high)})"


def _three(value: float) -> str:
    """Three digits, or all in front of the point; three decimals at most."""
    return f"{value:,.{3 if value < 0.995 else 2 if value < 9.995 else 1 if value < 99.95 else 0}f}"


def _bytes(number: int | None) -> str:
    return NOTHING if number is None else f"{number / 1e9:.2f}"


def _aligned(heads: list[str], rows: list[list[str]]) -> str:
    """Names to the left, numbers to the right; a name that would make the table too wide is cut."""
    named = ("model", "time ∝ tokens^p: p", "published, not measured here")
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    name = next(i for i, head in enumerate(heads) if head in named)
    widths[name] -= max(0, sum(widths) + 2 * (len(widths) - 1) - WIDTH)
    lines = []
    for line in (heads, *rows):
        cells = [c[:w].ljust(w) if i == name else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))]
        lines.append("  ".join(cells).rstrip())
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _markdown(heads: list[str], rows: list[list[str]]) -> list[str]:
    align = ["---" if head in ("model", "px") else "---:" for head in heads]
    return ["| " + " | ".join(line) + " |" for line in (heads, align, *rows)]


def _wrapped(line: str) -> str:
    return textwrap.fill(line, WIDTH, subsequent_indent="  ", break_on_hyphens=False)
