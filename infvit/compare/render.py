"""A comparison as text: for the terminal, Markdown and CSV."""

from __future__ import annotations

import csv
import io
import textwrap
from collections.abc import Callable, Sequence

from infvit.compare.evaluation import MAP_FIGURES
from infvit.compare.provenance import EVERY_ROW, subject
from infvit.compare.table import Comparison, Row
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
PUBLISHED = "published: others' numbers, not measured here: {sources}."
TITLES = {
    "imagenet_v2_matched-frequency": "V2",
    "imagenet_v2_threshold-0.7": "V2 threshold-0.7",
    "imagenet_v2_top-images": "V2 top images",
}
"""Headings of further test sets."""
MAPS = "{figures}: of the maps that the attention of each model is by itself, {how}."
NOTHING = "–"


def percent(estimate: Estimate) -> str:
    """An accuracy, a fraction, in percent with its interval: "93.40 ± 1.25"."""
    return _interval(estimate, lambda x: f"{100 * x:.2f}")


def plain(estimate: Estimate) -> str:
    """A loss with its interval, in three decimals."""
    return _interval(estimate, lambda x: f"{x:.3f}")


def rate(estimate: Estimate) -> str:
    """Images per second with its interval."""
    small = estimate.mean is not None and estimate.mean < 100
    return _interval(estimate, lambda x: f"{x:,.1f}" if small else f"{x:,.0f}")


def points(row: Row) -> str:
    """The paired difference of top-1 in percentage points: "+1.25 ± 0.40", or what stands in its place."""
    if row.is_baseline:
        return "baseline"
    if row.paired is None or row.paired.top1.mean is None:
        return NOTHING
    half = row.paired.top1.half_width
    mean = f"{100 * row.paired.top1.mean:+.2f}".replace("-", "−")
    return f"{mean} ± {NOTHING if half is None else f'{100 * half:.2f}'}"


def speed(row: Row) -> str:
    """The paired ratio of images/s with its interval: "1.16x (1.10 – 1.22)", or what stands in its place."""
    if row.is_baseline:
        return "baseline"
    ratio, low, high = row.paired.speed if row.paired else (None, None, None)
    if ratio is None:
        return NOTHING
    return f"{_three(ratio)}x" + ("" if low is None or high is None else f" ({_three(low)} – {_three(high)})")


def as_published(row: Row) -> str:
    """The published top-1 in percent, with ImageNet-V2's where there is one, and the parameters it belongs to."""
    if row.published is None:
        return NOTHING
    words = [f"{100 * row.published.top1:.1f}"] if row.published.top1 is not None else []
    words += [f"V2 {100 * row.published.v2_top1:.1f}"] if row.published.v2_top1 is not None else []
    words += [f"({amount(row.published.parameters)})"] if row.published.parameters is not None else []
    return " ".join(words)


def maps_as_published(row: Row) -> str:
    """The published quality of maps in percent, under the names of its figures."""
    known = {title: getattr(row.published, name, None) for name, title in MAP_FIGURES.items()}
    return " ".join(f"{title} {100 * value:.1f}" for title, value in known.items() if value is not None) or NOTHING


def amount(number: float | None) -> str:
    """A count in three digits with its SI prefix: "53.5M"."""
    if number is None:
        return NOTHING
    for size, prefix in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        # From 999.5 on, three digits round up into the next prefix.
        if number >= 0.9995 * size:
            value = number / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f}{prefix}"
    return f"{number:g}"


def duration(seconds: float | None) -> str:
    """A time in its two largest units: "3 min 12 s"."""
    if seconds is None:
        return NOTHING
    if round(seconds) < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min"


def differing(row: Row) -> str:
    """The comparability mark: ✓, or what differs."""
    return "✓" if row.comparable else "≠ " + "; ".join(row.differs)


def notes(comparison: Comparison) -> list[str]:
    """What must be known beside the numbers: repeated seeds, missing values, throughput of different machines."""
    lines: list[str] = []
    lacking_pairs: dict[tuple[int, int, str], list[str]] = {}
    for row in comparison.rows:
        for run in row.repeats:
            lines.append(f"{row.name} seed {run.seed}: finished twice; only the latest is counted, not {run.run_dir}")
        metrics = [("top-1", row.top1), ("top-5", row.top5), ("loss", row.loss)]
        metrics += [(heading(name).removesuffix(" %"), there) for name, there in row.elsewhere.items()]
        lacking = [name for name, estimate in metrics if 0 < estimate.n < row.finished]
        if lacking:
            lines.append(f"{row.name}: of {row.finished} finished seeds, not all have {', '.join(lacking)}")
        if row.paired and not row.is_baseline and row.paired.top1.n < row.finished:
            lacking_pairs.setdefault((row.paired.top1.n, row.finished, row.paired.baseline), []).append(row.name)
    for (n, finished, baseline), names in lacking_pairs.items():
        lines.append(f"{', '.join(names)}: of {finished} finished seeds, {n} paired with {baseline}")
    if len(comparison.rows) > 1 and not any(row.paired for row in comparison.rows):
        lines.append(f"no finished run of {comparison.baseline} compares with another row: no paired differences")
    measured = [run for run in comparison.runs if run.train_images_per_second is not None]
    if len({run.extra["maps"] for run in comparison.runs if "maps" in run.extra}) > 1:
        lines.append("the quality of maps was measured in different ways: it does not compare")
    for what in ("hardware", "loader", "precision"):
        if len({str(getattr(run, what)) for run in measured}) > 1:
            lines.append(f"images/s were measured with different {what}: they do not compare")
    return lines


def to_csv(comparison: Comparison) -> str:
    """Every row in raw numbers, accuracies as fractions, missing ones empty."""
    records = comparison.records()
    out = io.StringIO()
    if records:
        writer = csv.DictWriter(out, list(records[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(records)
    return out.getvalue()


def heading(test_set: str) -> str:
    """The heading of the top-1 on a further test set: "V2 top-1 %"."""
    return f"{TITLES.get(test_set, test_set)} top-1 %"


def map_heading(figure: str) -> str:
    """The heading of the quality of maps: "MoRF-AOC %"."""
    return f"{MAP_FIGURES[figure]} %"


def columns(comparison: Comparison) -> dict[str, Callable[[Row], str]]:
    """The columns of the table by their headings; those of which no row has anything are left out."""
    rows = comparison.rows
    found: dict[str, Callable[[Row], str]] = {
        "model": lambda row: row.name,
        "comparable": differing,
        "seeds": lambda row: str(row.finished),
        "no result": lambda row: row.troubles or "0",
        "top-1 %": lambda row: percent(row.top1),
    }
    if any(row.paired for row in rows):
        found["Δ top-1"] = points
    for name in comparison.elsewhere:
        found[heading(name)] = lambda row, name=name: percent(row.elsewhere.get(name, Estimate()))  # type: ignore[misc]
    for name in comparison.maps:
        found[map_heading(name)] = lambda row, name=name: percent(row.maps.get(name, Estimate()))  # type: ignore[misc]
    if any(row.published for row in rows):
        found["published"] = as_published
        if comparison.maps:
            found["published maps"] = maps_as_published
    found |= {
        "top-5 %": lambda row: percent(row.top5),
        "test loss": lambda row: plain(row.loss),
        "images/s": lambda row: rate(row.images_per_second),
    }
    if any(row.paired for row in rows):
        found["speed"] = speed
    return found | {
        "params": lambda row: amount(row.known("parameters")),
        "FLOPs": lambda row: amount(row.known("flops_forward")),
        "training": lambda row: duration(row.seconds.mean),
    }


def shared(comparison: Comparison) -> list[str]:
    """One line of the overrides that all rows have and their names leave out, or none."""
    return [f"{EVERY_ROW}: {' '.join(comparison.shared)}"] if comparison.shared else []


def explained(comparison: Comparison) -> list[str]:
    """What the intervals are, what the differences are taken against, and whose the published numbers are."""
    sources = {row.published.source: None for row in comparison.rows if row.published}
    baselines = {row.paired.baseline: None for row in comparison.rows if row.paired}
    lines = [INTERVALS]
    if baselines:
        lines.append(PAIRED.format(baseline=next(iter(baselines)) if len(baselines) == 1 else comparison.baseline))
    if comparison.maps:
        how = dict.fromkeys(str(run.extra["maps"]) for run in comparison.runs if "maps" in run.extra)
        lines.append(
            MAPS.format(figures=", ".join(MAP_FIGURES[name] for name in comparison.maps), how=" or ".join(how))
        )
    if sources:
        lines.append(PUBLISHED.format(sources=", ".join(sources)))
    return lines


def to_markdown(comparison: Comparison) -> str:
    """The table with what was compared above it and the failures below."""
    lines = ["# Comparison", ""]
    lines += [f"- {name}: {_markdown(value)}" for name, value in subject(comparison)]
    shown = columns(comparison)
    lines += ["", "| " + " | ".join(map(_markdown, shown)) + " |"]
    lines += ["|" + "|".join(["---", "---", *["---:"] * (len(shown) - 2)]) + "|"]
    for row in comparison.rows:
        lines.append("| " + " | ".join(_markdown(cell(row)) for cell in shown.values()) + " |")
    for bad in comparison.unreadable:
        cells = [_markdown(bad.path), "unreadable: " + _markdown(bad.reason), *[NOTHING] * (len(shown) - 2)]
        lines.append("| " + " | ".join(cells) + " |")
    lines += ["", _markdown(" ".join([*explained(comparison), FLOPS])), ""]
    lines += [f"- {_markdown(line)}" for line in (*failures(comparison), *unfinished(comparison), *notes(comparison))]
    return "\n".join(lines).rstrip() + "\n"


def failures(comparison: Comparison) -> list[str]:
    """One line for each run that failed or diverged: which, how, and its error."""
    return [
        f"{row.name} seed {run.seed} {run.status}: {run.error_line or 'no error recorded'}"
        + (f" ({run.run_dir})" if run.run_dir else "")
        for row, run in comparison.failures
    ]


def unfinished(comparison: Comparison) -> list[str]:
    """One line for each run that says it is running, with the time of its last word, or was interrupted, with how to
    go on.
    """
    words = {
        "running": lambda run: (
            f"last written {f'{run.last_written} UTC' if run.last_written else 'at an unknown time'}"
        ),
        "interrupted": lambda run: run.error_line or "the same command goes on",
    }
    return [
        f"{row.name} seed {run.seed} {run.status}: {words[run.status](run)}"
        + (f" ({run.run_dir})" if run.run_dir else "")
        for row in comparison.rows
        for run in row.runs
        if run.status in words
    ]


def to_text(comparison: Comparison, width: int = 80) -> str:
    """A table for a terminal: as many columns as fit, the rest left to the files; no line is longer than `width`."""
    every = columns(comparison)
    # In the order in which they are given up when there is no room, the last first.
    extra = [heading(name) for name in comparison.elsewhere] + [map_heading(name) for name in comparison.maps]
    wanted = ["top-1 %", "Δ top-1", "seeds", *extra, "speed", "published", "params", "FLOPs", "images/s", "training"]
    wanted = [name for name in [*wanted, "test loss", "top-5 %", "published maps"] if name in every]
    cells = {name: [name, *(every[name](row) for row in comparison.rows)] for name in wanted}
    names = ["model", *(("✓ " if row.comparable else "≠ ") + _printable(row.name) for row in comparison.rows)]
    room = width - min(max(map(len, names)), max(16, width - 60))
    shown = []
    for name in wanted:
        needed = 2 + max(map(len, cells[name]))
        if needed > room:
            break
        room -= needed
        shown.append(name)
    first = width - room - sum(2 + max(map(len, cells[name])) for name in shown)
    first = min(max(map(len, names)), first + room)
    order = [name for name in every if name in shown]
    lines = [line for words in shared(comparison) for line in _wrapped(words, width, "  ", first="")]
    for i, name in enumerate(names):
        line = _cut(name, first).ljust(first)
        line += "".join("  " + cells[column][i].rjust(max(map(len, cells[column]))) for column in order)
        lines.append(line.rstrip())
        if i == 0:
            lines.append("─" * len(line))
            continue
        row = comparison.rows[i - 1]
        for remark in (*row.differs, row.troubles):
            lines += _wrapped(remark, width, "    ") if remark else []
    for bad in comparison.unreadable:
        lines += _wrapped(f"✗ {bad.path}: {bad.reason}", width, "    ", first="")
    lines.append("")
    for line in (*failures(comparison), *unfinished(comparison), *notes(comparison), *explained(comparison)):
        lines += _wrapped(line, width, "  ", first="")
    return "\n".join(lines) + "\n"


def _interval(estimate: Estimate, form: Callable[[float], str]) -> str:
    if estimate.mean is None:
        return NOTHING
    return f"{form(estimate.mean)} ± {NOTHING if estimate.half_width is None else form(estimate.half_width)}"


def _three(ratio: float) -> str:
    """A ratio in two decimals; an interval's far end that says nothing any more in powers of ten."""
    return f"{ratio:.2f}" if 0.005 <= ratio < 1000 else f"{ratio:.0e}"


def _printable(text: str) -> str:
    """One line without the control characters that would move a terminal's cursor."""
    return "".join(char if char.isprintable() else " " for char in text)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"


def _wrapped(text: str, width: int, indent: str, first: str | None = None) -> Sequence[str]:
    lead = indent if first is None else first
    return textwrap.wrap(_printable(text), width, initial_indent=lead, subsequent_indent=indent) or [lead]


def _markdown(text: str) -> str:
    """Text that Markdown shows as it is, in one line of one cell."""
    for char, escaped in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("\\", "\\\\")):
        text = text.replace(char, escaped)
    for char in "|*`[]":
        text = text.replace(char, "\\" + char)
    return "; ".join(_printable(line) for line in text.splitlines())
