"""The efficiency measurement as text: small tables of at most 80 columns for a terminal, wide ones for Markdown."""

from collections.abc import Callable
from functools import partial
from typing import Any

from infvit.measure.efficiency.case import BASELINES, Case, Efficiency, exponents
from infvit.measure.efficiency.passes import FORWARD, TRAINING
from infvit.measure.efficiency.timing import Spread
from infvit.tables.numbers import NOTHING, amount, gigabytes, in_range, ratio, three_digits
from infvit.tables.table import Column, Table, wrapped

TITLES = {FORWARD: "Forward pass", TRAINING: "Training step: forward, backward, AdamW"}


def to_text(result: Efficiency) -> str:
    """The measurement for a terminal: two tables for each pass."""
    return _document(result, lambda lines: "\n".join(line for text in lines for line in wrapped(text)), Table.text)


def to_markdown(result: Efficiency) -> str:
    """The measurement in Markdown: one table for each pass, with the picture stored beside it."""
    bullets = _document(result, lambda lines: "\n".join(f"- {line}" for line in lines), Table.markdown)
    return f"# Efficiency\n\n{bullets}"


def _document(result: Efficiency, form: Callable[[list[str]], str], show: Callable[[Table[Any]], str]) -> str:
    markdown = show is Table.markdown
    tables: list[Table[Any]] = [counts(result)]
    for kind in _kinds(result):
        times, comparison, title = time_columns(result), comparison_columns(result, kind), TITLES[kind]
        if markdown:
            shown = any(case.time for case in result.cases if case.kind == kind)
            picture = f"\n\n![{title}: time and memory](efficiency_{kind}.png)" if shown else ""
            tables.append(_pass_table(result, kind, [*times, *comparison], f"## {title}{picture}"))
        else:
            tables += [_pass_table(result, kind, columns, title) for columns in (times, comparison)]
    tables += [fits(result)] if fits(result).rows else []
    blocks = [form(about(result)), *map(show, tables), form([*_remarks(result), *explanations(result)])]
    return "\n\n".join(blocks) + "\n"


def about(result: Efficiency) -> list[str]:
    """The models' size, the settings, the machine and the command."""
    machine, setting = result.hardware, result.setting
    cpu = f"{machine['cpu']}, {result.threads} thread{'s' * (result.threads > 1)}"
    peaks = [rate for case in result.cases for rate in case.peak_flops_per_second]
    peak = f"{_spread(Spread.of(peaks), lambda x: f'{x / 1e9:,.0f}')} GFLOP/s" if peaks else NOTHING
    exact = setting.device == "cuda" and setting.precision == "fp32"
    return [
        f"size {result.size}, batch {setting.batch_size}, {setting.precision}"
        + (f" (float32 products at {result.float32_matmul_precision!r})" if exact else "")
        + f", {'compiled' if setting.compile else 'not compiled'}, {result.rounds} rounds, at most "
        f"{result.time_limit:,.0f} s for a case alone",
        f"{', '.join(machine['gpus']) if setting.device == 'cuda' else cpu}, torch {result.versions['torch']}, Python "
        f"{result.versions['python']}",
        f"matrix-multiply peak in the same rounds: {peak} ({setting.precision}, {result.product} × {result.product})",
        f"energy: {result.energy}",
        result.command,
    ]


def explanations(result: Efficiency) -> list[str]:
    """What the numbers mean."""
    covered = 100 * (1 - 2 ** (1 - result.rounds))
    timed = {case.model for case in result.cases if case.time}
    return [
        f"Times: the median of {result.rounds} rounds in which all take turns (smallest – largest). Independent rounds "
        f"enclose the true median so with probability {covered:.1f}%. Ratios and shares are taken within each round.",
        "Counts are for one image: FLOPs are 2 per multiply-add, of products, convolutions and fused attention alone; "
        "those of a training step are of both passes. The share of the peak is of these FLOPs in the whole time.",
        *(f"vs {name}: how many times as fast as {BASELINES[name]}." for name in BASELINES if name in timed),
        "Memory: the peak of the tensors on the GPU."
        if result.setting.device == "cuda"
        else "Memory: the peak resident memory of a process of its own; in brackets without its libraries.",
    ]


def time_columns(result: Efficiency) -> list[Column[Case]]:
    """Time, speed, memory and, where it was measured, energy."""
    on_gpu = result.setting.device == "cuda"

    def memory(case: Case) -> str | None:
        added = "" if on_gpu else f" ({gigabytes(case.added_bytes)})"
        return gigabytes(case.peak_bytes) + added if case.peak_bytes else None

    return [
        Column("ms", lambda case: _spread(case.time, lambda s: three_digits(1e3 * s)) if case.seconds else case.status),
        Column("images/s", lambda case: case.images_per_second, _median),
        Column("memory, GB", memory),
        Column("J/image", lambda case: case.joules_per_image, _median, optional=True),
    ]


def comparison_columns(result: Efficiency, kind: str) -> list[Column[Case]]:
    """Achieved FLOP/s and the speed over each softmax that was timed in this pass."""

    def faster(case: Case, baseline: str) -> str:
        if case.model == baseline:
            return "1"
        return _spread(case.faster_than(case.baselines(result.cases)[baseline]), ratio, "x")

    timed = {case.model for case in result.cases if case.kind == kind and case.time}
    return [
        Column("GFLOP/s", lambda case: case.flops_per_second, lambda rate: three_digits(rate.median / 1e9)),
        Column("of peak", lambda case: case.share_of_peak, lambda share: f"{100 * share.median:.0f}%"),
        *(Column(f"vs {name}", partial(faster, baseline=name)) for name in BASELINES if name in timed),
    ]


def counts(result: Efficiency) -> Table[dict[str, Case]]:
    """Parameters, MACs and FLOPs of each model at each resolution."""
    rows: dict[tuple[int, str], dict[str, Case]] = {}
    for case in result.cases:
        rows.setdefault((case.resolution, case.model), {})[case.kind] = case
    kinds = _kinds(result)

    def of(name: str, kind: str = kinds[0]) -> Callable[[dict[str, Case]], Any]:
        return lambda row: getattr(row.get(kind), name, None)

    columns: list[Column[dict[str, Case]]] = [
        Column("px", of("resolution")),
        Column("tokens", of("tokens"), "{:,}".format),
        Column("model", of("model"), left=True),
        Column("params", of("parameters"), amount),
        Column("MACs", of("macs", FORWARD), amount),
        *(Column(f"FLOPs, {kind}", of("flops", kind), amount) for kind in kinds),
    ]
    return Table(columns, list(rows.values()))


def fits(result: Efficiency) -> Table[str]:
    """The exponents of time against tokens, by model; without rows if nothing was timed at several resolutions."""
    by_kind = {kind: exponents(result.cases, kind) for kind in _kinds(result)}
    models = dict.fromkeys(case.model for case in result.cases)
    columns: list[Column[str]] = [Column("time ∝ tokens^p: p", lambda model: model, left=True)]
    columns += [Column(kind, by_model.get, "{:.2f}".format) for kind, by_model in by_kind.items()]
    return Table(columns, [model for model in models if any(model in by_model for by_model in by_kind.values())])


def _pass_table(result: Efficiency, kind: str, columns: list[Column[Case]], title: str) -> Table[Case]:
    """The cases of a pass; a resolution is printed at its first model alone."""
    cases = [case for case in result.cases if case.kind == kind]
    first = {case.resolution: id(case) for case in reversed(cases)}
    px: Column[Case] = Column("px", lambda case: str(case.resolution) if id(case) in first.values() else "")
    return Table([px, Column("model", lambda case: case.model, left=True), *columns], cases, title)


def _remarks(result: Efficiency) -> list[str]:
    """Why a case has no number."""
    return [f"{c.resolution} px, {c.kind}, {c.model}: {c.status}, {c.note}" for c in result.cases if c.note]


def _kinds(result: Efficiency) -> list[str]:
    return list(dict.fromkeys(case.kind for case in result.cases))


def _median(spread: Spread) -> str:
    return three_digits(spread.median)


def _spread(spread: Spread | None, form: Callable[[float], str], unit: str = "") -> str:
    return NOTHING if spread is None else in_range(spread.median, spread.low, spread.high, form, unit)
