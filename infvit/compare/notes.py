"""What must be known beside the numbers of a comparison, as lines that every format prints."""

from __future__ import annotations

from infvit.compare.columns import table
from infvit.compare.comparison import Comparison
from infvit.compare.evaluation import MAP_FIGURES
from infvit.compare.provenance import EVERY_ROW
from infvit.run.result import Result
from infvit.tables.interval import Estimate

INTERVALS = (
    "± is the half-width of the 95% interval of the mean over seeds: Student's t with n − 1 degrees of freedom. "
    "One seed has no interval (–); two seeds have a very wide one, shown as it is."
)
PAIRED = (
    "Δ top-1 and speed are against {baseline}, paired by seed over the seeds that both have finished: the mean "
    "difference in points with Student's 95% interval over the differences, and the ratio of images/s (geometric mean; "
    "its interval is Student's on the logarithm). Rows that do not compare with {baseline} have none. Each interval "
    "stands alone: of twenty, one misses by chance."
)
FLOPS = "FLOPs are for the forward pass of one image, two per multiply-add."


def shared(comparison: Comparison) -> list[str]:
    """One line with the overrides that all rows have and their names leave out, or none."""
    return [f"{EVERY_ROW}: {' '.join(comparison.shared)}"] if comparison.shared else []


def problems(comparison: Comparison) -> list[str]:
    """A line for each result that cannot be read, and for each run that failed or diverged with its error."""
    lines = [f"unreadable: {bad.path}: {bad.reason}" for bad in comparison.unreadable]
    failed = _runs(comparison, "failed", "diverged")
    return lines + [_line(name, run, run.error_line or "no error recorded") for name, run in failed]


def unfinished(comparison: Comparison) -> list[str]:
    """A line for each run that is running, with the time of its last sign of life, or interrupted, with the remedy."""
    lines = []
    for name, run in _runs(comparison, "running", "interrupted"):
        last = f"last written {f'{run.last_written} UTC' if run.last_written else 'at an unknown time'}"
        lines.append(
            _line(name, run, last if run.status == "running" else run.error_line or "the same command resumes it")
        )
    return lines


def remarks(comparison: Comparison) -> list[str]:
    """A line for each repeated seed, missing value, unpaired seed, and measurement that does not compare."""
    lines = []
    unpaired: dict[str, list[str]] = {}
    columns = table(comparison).shown("markdown")
    for row in comparison.rows:
        for run in row.repeats:
            lines.append(f"{row.name} seed {run.seed}: finished twice; only the latest is counted, not {run.run_dir}")
        values = {column.heading: column.value(row) for column in columns if not column.optional}
        lacking = [name for name, x in values.items() if isinstance(x, Estimate) and 0 < x.n < row.finished]
        if lacking:
            names = ", ".join(name.removesuffix(" %") for name in lacking)
            lines.append(f"{row.name}: of {row.finished} finished seeds, not all have {names}")
        if row.paired and not row.is_baseline and row.paired.top1.n < row.finished:
            seeds = f"of {row.finished} finished seeds, {row.paired.top1.n} paired with {row.paired.baseline}"
            unpaired.setdefault(seeds, []).append(row.name)
    lines += [f"{', '.join(names)}: {seeds}" for seeds, names in unpaired.items()]
    if len(comparison.rows) > 1 and not any(row.paired for row in comparison.rows):
        lines.append(f"no finished run of {comparison.baseline} compares with another row: no paired differences")
    if len(_map_settings(comparison)) > 1:
        lines.append("the quality of maps was measured in different ways: it does not compare")
    timed = [run for run in comparison.runs if run.train_images_per_second is not None]
    for what in ("hardware", "loader", "precision"):
        if len({str(getattr(run, what)) for run in timed}) > 1:
            lines.append(f"images/s were measured with different {what}: they do not compare")
    return lines


def explanations(comparison: Comparison) -> list[str]:
    """What the intervals and the paired differences are, how maps were measured, and who published what."""
    lines = [INTERVALS]
    baselines = list(dict.fromkeys(row.paired.baseline for row in comparison.rows if row.paired))
    if baselines:
        lines.append(PAIRED.format(baseline=baselines[0] if len(baselines) == 1 else comparison.baseline))
    if comparison.maps:
        figures = ", ".join(MAP_FIGURES[name] for name in comparison.maps)
        how = " or ".join(_map_settings(comparison))
        lines.append(f"{figures}: of the maps that the attention of each model is by itself, {how}.")
    sources = list(dict.fromkeys(row.published.source for row in comparison.rows if row.published))
    if sources:
        lines.append(f"published: others' numbers, not measured here: {', '.join(sources)}.")
    return lines


def _map_settings(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(str(run.extra["maps"]) for run in comparison.runs if "maps" in run.extra))


def _runs(comparison: Comparison, *statuses: str) -> list[tuple[str, Result]]:
    return [(row.name, run) for row in comparison.rows for run in row.runs if run.status in statuses]


def _line(name: str, run: Result, words: str) -> str:
    return f"{name} seed {run.seed} {run.status}: {words}" + (f" ({run.run_dir})" if run.run_dir else "")
