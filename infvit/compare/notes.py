"""What must be known beside the numbers of a comparison, as lines that every format prints."""

from collections import Counter
from collections.abc import Mapping

from infvit.compare.columns import table
from infvit.compare.comparison import Comparison
from infvit.compare.evaluation import MAP_FIGURES
from infvit.compare.significance import LEVEL, POWER, seeds_needed
from infvit.run.result import Status
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
DECIDED = (
    "Both p are corrected by Holm over the {n} differences of this table. That of Δ = 0 is the paired t test's: below "
    "0.05 the row differs from its baseline. That of |Δ| ≥ {margin:g} is of two one-sided t tests: below 0.05 the row "
    "equals its baseline within {points}. Where neither is below, these seeds do not decide."
)
SEEDS = (
    "A difference of {points} would need {median} seeds in the median row, from {fewest} ({first}) to {most} ({last}): "
    "paired t test, level {level:g} two-sided and uncorrected, power {power:g}, from the variance of the differences "
    "seen."
)
EVERY_ROW = "Every row"
"""Heading of the overrides that all rows have."""
FLOPS = "FLOPs are for the forward pass of one image, two per multiply-add."


def shared(comparison: Comparison) -> list[str]:
    """One line with the overrides that all rows have and their names leave out, or none."""
    return [f"{EVERY_ROW}: {' '.join(comparison.shared)}"] if comparison.shared else []


def problems(comparison: Comparison) -> list[str]:
    """A line for each result that cannot be read, and for each run that failed or diverged with its error."""
    failed = _lines(comparison, "failed", "diverged")
    return [*(f"unreadable: {bad.path}: {bad.reason}" for bad in comparison.unreadable), *failed]


def unfinished(comparison: Comparison) -> list[str]:
    """A line for each run that is running, with the time of its last sign of life, or interrupted, with the remedy."""
    return _lines(comparison, "running", "interrupted")


def _lines(comparison: Comparison, *statuses: Status) -> list[str]:
    lines = []
    for name, run in ((row.name, run) for row in comparison.rows for run in row.runs if run.status in statuses):
        words = run.error_line or "no error recorded"
        if run.status == "running":
            words = f"last written {f'{run.last_written} UTC' if run.last_written else 'at an unknown time'}"
        elif run.status == "interrupted":
            words = run.error_line or "the same command resumes it"
        where = f" ({run.run_dir})" if run.run_dir else ""
        lines.append(f"{name} seed {run.seed} {run.status}: {words}{where}")
    return lines


def remarks(comparison: Comparison) -> list[str]:
    """A line for each repeated seed, missing value, unpaired seed, and measurement that does not compare."""
    lines = []
    unpaired: dict[str, list[str]] = {}
    columns = [column for column in table(comparison).shown("markdown") if not column.optional]
    for row in comparison.rows:
        for run in row.repeats:
            lines.append(f"{row.name} seed {run.seed}: finished twice; only the latest is counted, not {run.run_dir}")
        values = {column.heading.removesuffix(" %"): column.value(row) for column in columns}
        if lacking := [name for name, x in values.items() if isinstance(x, Estimate) and 0 < x.n < row.finished]:
            lines.append(f"{row.name}: of {row.finished} finished seeds, not all have {', '.join(lacking)}")
        if row.paired.baseline and not row.is_baseline and row.paired.top1.n < row.finished:
            n, base = row.paired.top1.n, row.paired.baseline
            seeds = (
                f"of {row.finished} finished seeds, {n} paired with {base}" if n else f"no seed in common with {base}"
            )
            unpaired.setdefault(seeds, []).append(row.name)
    lines += [f"{', '.join(names)}: {seeds}" for seeds, names in unpaired.items()]
    if len(comparison.rows) > 1 and not any(row.paired.baseline for row in comparison.rows):
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
    baselines = list(dict.fromkeys(row.paired.baseline for row in comparison.rows if row.paired.baseline))
    if baselines:
        lines.append(PAIRED.format(baseline=baselines[0] if len(baselines) == 1 else comparison.baseline))
    lines += _decided(comparison)
    if comparison.readings:
        after = ", ".join(f"after {epochs} ep." for epochs in comparison.readings)
        lines.append(f"{after}: the validation top-1 then, in the middle of the schedule; top-1 is of its end.")
    if comparison.maps:
        figures = ", ".join(MAP_FIGURES[name] for name in comparison.maps)
        how = " or ".join(_map_settings(comparison))
        lines.append(f"{figures}: of the maps that the attention of each model is by itself, {how}.")
    sources = list(dict.fromkeys(row.published.source for row in comparison.rows if row.published))
    if sources:
        lines.append(f"published: others' numbers, not measured here: {', '.join(sources)}.")
    return lines


def _decided(comparison: Comparison) -> list[str]:
    """What the p-values are, and the number of seeds that a difference of the margin would need."""
    if not comparison.decided:
        return []
    pairs = {row.name: row.paired.top1 for row in comparison.rows if row.name in comparison.decided}
    needed = sorted((seeds_needed(top1, comparison.margin / 100), name) for name, top1 in pairs.items())
    (fewest, first), (most, last) = needed[0], needed[-1]
    facts = {"median": needed[len(needed) // 2][0], "fewest": fewest, "first": first, "most": most, "last": last}
    facts |= {"n": len(pairs), "margin": comparison.margin, "level": LEVEL, "power": POWER}
    facts["points"] = f"{comparison.margin:g} {'point' if comparison.margin == 1 else 'points'}"
    return [DECIDED.format(**facts), SEEDS.format(**facts)]


def _map_settings(comparison: Comparison) -> list[str]:
    return list(dict.fromkeys(str(run.extra["maps"]) for run in comparison.runs if "maps" in run.extra))


def provenance(comparison: Comparison) -> list[tuple[str, str]]:
    """What all rows share, and the recipes, data sets, hardware, versions, commits, commands and dates of all runs.

    Pairs of a name and its different values, one a line, the most common first.
    """
    runs = comparison.runs
    dates = sorted(run.started[:16].replace("T", " ") for run in runs if run.started)
    pairs = {
        EVERY_ROW: [" ".join(comparison.shared)],
        "Recipe": [f"{run.recipe} (hash {run.recipe_hash or 'unknown'}, {run.epochs} epochs)" for run in runs],
        "Data": [f"{run.data} (fingerprint {run.data_fingerprint or 'unknown'}, {run.image_size} px)" for run in runs],
        "Hardware": [flat(run.hardware) for run in runs],
        "Versions": [flat(run.versions) for run in runs],
        "Commit": [run.git_commit or "" for run in runs],
        "Command": [run.sweep_command or run.command for run in runs],
        "Started": [" to ".join(dict.fromkeys((dates[0], dates[-1])))] if dates else [],
    }
    ordered = {name: [value for value, _ in Counter(values).most_common() if value] for name, values in pairs.items()}
    return [(name, "\n".join(values)) for name, values in ordered.items() if values]


def flat(facts: Mapping[str, object]) -> str:
    """Facts in one line, without empty ones."""
    return ", ".join(f"{name} {value}" for name, value in facts.items() if value not in (None, "", [], {}))
