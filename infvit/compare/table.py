"""From many results to one table: seeds grouped, intervals taken, and what must not be compared marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infvit.compare.evaluation import MAP_FIGURES, with_evaluations, with_maps
from infvit.compare.grouping import best_known, differences, group, names_of, shared_overrides
from infvit.compare.pairing import BASELINE, Paired, baseline_of, chosen
from infvit.compare.published import Published, published
from infvit.errors import UsageError
from infvit.run.result import (
    CONFIG_FIELDS,
    RESULT_FILE,
    WITHOUT_NUMBERS,
    Result,
    UnreadableResultError,
)
from infvit.tables.interval import Estimate


@dataclass(frozen=True)
class Unreadable:
    """A place where a result should be and none can be read."""

    path: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One configuration: all its runs, and the means over its finished seeds.

    `counted` holds one finished run per seed, the latest; an earlier one is in `repeats` and not in the means, since
    the same seed twice is no second opinion. `differs` says in words what keeps the row from being compared with most
    others; `paired` is the difference to the baseline that it does compare with, `elsewhere` the top-1 on further
    test sets (metrics such as "v2/top1").
    """

    name: str
    runs: tuple[Result, ...]
    counted: tuple[Result, ...]
    repeats: tuple[Result, ...]
    top1: Estimate
    top5: Estimate
    loss: Estimate
    images_per_second: Estimate
    seconds: Estimate
    differs: tuple[str, ...] = ()
    paired: Paired | None = None
    published: Published | None = None

    @classmethod
    def of(cls, name: str, runs: Sequence[Result]) -> Row:
        """From all runs of one configuration."""
        latest: dict[int, Result] = {}
        finished = [run for run in runs if run.status == "finished"]
        for run in sorted(finished, key=lambda run: run.started):
            latest[run.seed] = run
        counted = tuple(latest[seed] for seed in sorted(latest))
        return cls(
            name=name,
            runs=tuple(sorted(runs, key=lambda run: (run.seed, run.started))),
            counted=counted,
            repeats=tuple(run for run in finished if not any(run is other for other in counted)),
            top1=Estimate.of(run.metrics.get("test/top1") for run in counted),
            top5=Estimate.of(run.metrics.get("test/top5") for run in counted),
            loss=Estimate.of(run.metrics.get("test/loss") for run in counted),
            images_per_second=Estimate.of(run.train_images_per_second for run in counted),
            seconds=Estimate.of(run.seconds for run in counted),
            published=published(best_known(counted or runs)),
        )

    @property
    def comparable(self) -> bool:
        """Whether the row agrees with the reference in everything a comparison needs."""
        return not self.differs

    @property
    def config(self) -> Result:
        """The run that stands for the configuration: a counted one where there is one."""
        return best_known(self.counted or self.runs)

    @property
    def finished(self) -> int:
        """The number of seeds that the means are taken over."""
        return len(self.counted)

    def count(self, status: str) -> int:
        """The number of runs that ended so."""
        return sum(run.status == status for run in self.runs)

    @property
    def is_baseline(self) -> bool:
        """Whether other rows are paired with this one."""
        return self.paired is not None and self.paired.baseline == self.name

    @property
    def elsewhere(self) -> dict[str, Estimate]:
        """Top-1 on the test sets beside the usual one, by their names ("v2")."""
        names = {key.removesuffix("/top1") for run in self.counted for key in run.metrics if key.endswith("/top1")}
        return {
            name: Estimate.of(run.metrics.get(f"{name}/top1") for run in self.counted)
            for name in sorted(names - {"train", "val", "test"})
        }

    @property
    def maps(self) -> dict[str, Estimate]:
        """How good the maps of the model's own attention are, those of `MAP_FIGURES` that were measured."""
        found = {
            name: Estimate.of(run.metrics.get(f"attention/{name}") for run in self.counted) for name in MAP_FIGURES
        }
        return {name: estimate for name, estimate in found.items() if estimate.n}

    @property
    def troubles(self) -> str:
        """The runs that gave no numbers, in words: "1 failed, 2 running", or nothing."""
        counts = [(self.count(status), status) for status in WITHOUT_NUMBERS]
        return ", ".join(f"{n} {status}" for n, status in counts if n)

    def known(self, name: str) -> Any:
        """A field of the configuration, from the first run that knows it."""
        return next((value for run in (*self.counted, *self.runs) if (value := getattr(run, name)) is not None), None)

    def record(self) -> dict[str, Any]:
        """The row as raw numbers under flat names (a CSV line, a row of a W&B table)."""
        record: dict[str, Any] = {"name": self.name, "model": self.config.model, "attention": self.config.attention}
        record |= {"variant": self.config.variant, "comparable": self.comparable, "differs": "; ".join(self.differs)}
        record |= {"seeds": " ".join(str(run.seed) for run in self.counted), "finished": self.finished}
        record |= {status: self.count(status) for status in WITHOUT_NUMBERS}
        record["repeats"] = len(self.repeats)
        for name, estimate in (
            ("test_top1", self.top1),
            ("test_top5", self.top5),
            ("test_loss", self.loss),
            ("train_images_per_second", self.images_per_second),
            ("seconds", self.seconds),
        ):
            record |= {name: estimate.mean, f"{name}_ci95_half_width": estimate.half_width, f"{name}_n": estimate.n}
        paired = self.paired or Paired("", Estimate(), Estimate())
        record |= {"baseline": paired.baseline, "paired_top1": paired.top1.mean, "paired_n": paired.top1.n}
        record |= {"paired_top1_ci95_half_width": paired.top1.half_width}
        record |= dict(
            zip(("paired_speed", "paired_speed_ci95_low", "paired_speed_ci95_high"), paired.speed, strict=True)
        )
        record["paired_speed_n"] = paired.log_speed.n
        for name in ("parameters", "macs_forward", "flops_forward", "flops_training"):
            record[name] = self.known(name)
        return record | {name: getattr(self.config, name) for name in CONFIG_FIELDS if name not in record}


@dataclass(frozen=True)
class Comparison:
    """Rows by falling top-1, the places that could not be read, and the row that the others are held against."""

    rows: tuple[Row, ...]
    unreadable: tuple[Unreadable, ...] = ()
    reference: Result | None = None
    baseline: str = BASELINE

    @classmethod
    def from_results(
        cls, results: Iterable[Result], unreadable: Iterable[Unreadable] = (), baseline: str | None = None
    ) -> Comparison:
        """Group the results by configuration, mark what differs from the most common one, pair with the baseline.

        `baseline` names a model or a row; the default is softmax, `BASELINE`, where there is one.
        """
        groups = group(results)
        configs = [best_known(runs) for runs in groups]
        names = names_of(configs, shared_overrides(configs))
        rows = [Row.of(name, runs) for name, runs in zip(names, groups, strict=True)]
        reference = _reference(rows)
        if reference:
            rows = [replace(row, differs=differences(row.config, reference)) for row in rows]
        baseline = chosen(rows, baseline)
        against = [baseline_of(row, rows, baseline) for row in rows]
        pairs = [(row, base) for row, base in zip(rows, against, strict=True) if base and base is not row]
        held = {base.name for _, base in pairs}
        pairs += [(row, row) for row in rows if row.name in held]
        paired = {row.name: Paired.of(row, base) for row, base in pairs}
        rows = [replace(row, paired=paired.get(row.name)) for row in rows]
        rows.sort(key=lambda row: -1.0 if row.top1.mean is None else row.top1.mean, reverse=True)
        return cls(tuple(rows), tuple(unreadable), reference, baseline)

    @classmethod
    def from_dirs(cls, dirs: Iterable[str | Path], baseline: str | None = None) -> Comparison:
        """Read every `result.json` in the folders and below, with the run's evaluations on other data beside it.

        `run_dir` becomes the folder where it was found.

        A file that cannot be read, or a folder without any, becomes an entry of `unreadable`. Only a path that does
        not exist raises `UsageError`.
        """
        results: list[Result] = []
        unreadable: list[Unreadable] = []
        seen: set[Path] = set()
        for directory in dirs:
            paths = find_results(directory)
            if not paths:
                unreadable.append(Unreadable(str(directory), f"no {RESULT_FILE} in it"))
            for path in paths:
                if path.resolve() in seen:
                    continue
                seen.add(path.resolve())
                try:
                    results.append(replace(Result.read(path), run_dir=str(path.parent)))
                except UnreadableResultError as error:
                    unreadable.append(Unreadable(error.path, error.reason))
        results, no_evaluations = with_evaluations(results)
        results, no_maps = with_maps(results)
        unreadable += [Unreadable(error.path, error.reason) for error in (*no_evaluations, *no_maps)]
        return cls.from_results(results, unreadable, baseline)

    @property
    def runs(self) -> list[Result]:
        """Every run of every row, in the order of the rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def failures(self) -> list[tuple[Row, Result]]:
        """The runs that failed or diverged, each with its row."""
        return [(row, run) for row in self.rows for run in row.runs if run.status in ("failed", "diverged")]

    @property
    def shared(self) -> tuple[str, ...]:
        """The overrides that all rows have, which their names leave out."""
        return shared_overrides([row.config for row in self.rows])

    @property
    def elsewhere(self) -> list[str]:
        """The further test sets on which any row was measured."""
        return sorted({name for row in self.rows for name in row.elsewhere})

    @property
    def maps(self) -> list[str]:
        """Those of `MAP_FIGURES` that any row has."""
        return [name for name in MAP_FIGURES if any(name in row.maps for row in self.rows)]

    def distinct(self, name: str) -> list[Any]:
        """The different values of a field over all runs, in the order of the rows."""
        values: list[Any] = []
        for run in self.runs:
            value = getattr(run, name)
            if value not in (None, "", {}) and value not in values:
                values.append(value)
        return values

    def records(self) -> list[dict[str, Any]]:
        """Every row as raw numbers; an unreadable result has only `path` and `problem`."""
        rows = [row.record() | self._sometimes(row) | {"path": "", "problem": ""} for row in self.rows]
        names = list(rows[0]) if rows else []
        empty = dict.fromkeys(names)
        return rows + [empty | {"path": bad.path, "problem": bad.reason} for bad in self.unreadable]

    def _sometimes(self, row: Row) -> dict[str, Any]:
        """The columns that only some tables have: further test sets, and published numbers."""
        record: dict[str, Any] = {}
        for name in self.elsewhere:
            estimate = row.elsewhere.get(name, Estimate())
            record |= {f"{name}_top1": estimate.mean, f"{name}_top1_ci95_half_width": estimate.half_width}
            record[f"{name}_top1_n"] = estimate.n
        for name in self.maps:
            estimate = row.maps.get(name, Estimate())
            record |= {name: estimate.mean, f"{name}_ci95_half_width": estimate.half_width, f"{name}_n": estimate.n}
        if any(other.published for other in self.rows):
            for name in ("top1", "v2_top1", "parameters", *self.maps, "source"):
                record[f"published_{name}"] = getattr(row.published, name, None)
        return record


def find_results(path: str | Path) -> list[Path]:
    """The `result.json` files in a folder and below it, sorted; a path to such a file is itself."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; give the folder of a run or of a sweep")
    return sorted(path.rglob(RESULT_FILE))


def _reference(rows: Sequence[Row]) -> Result | None:
    candidates = [row.config for row in rows if row.finished] or [row.config for row in rows]
    if not candidates:
        return None
    signatures = [config.signature for config in candidates]
    # Of equally common signatures, Counter keeps the one that came first.
    return candidates[signatures.index(Counter(signatures).most_common(1)[0][0])]
