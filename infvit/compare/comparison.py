"""Groups results into rows: seeds of one configuration, their means, and what does not compare."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from infvit.compare.evaluation import MAP_FIGURES, with_evaluations
from infvit.compare.grouping import best_known, differences, group, names_of, older_code, shared_overrides
from infvit.compare.pairing import NOT_PAIRED, Paired
from infvit.compare.published import Published, published
from infvit.compare.significance import holm, p_different, p_equivalent
from infvit.errors import UsageError
from infvit.run.result import CONFIG_FIELDS, RESULT_FILE, WITHOUT_NUMBERS, Result, UnreadableResultError
from infvit.tables.interval import Estimate

BASELINE = "vit"


@dataclass(frozen=True)
class Row:
    """One configuration: all its runs, and means over its finished seeds.

    `differs` names what keeps the row from being compared with most others; `paired` is its difference to the baseline
    that it compares with, and of a baseline one of no pairs to itself.
    """

    name: str
    runs: tuple[Result, ...]
    differs: tuple[str, ...] = ()
    paired: Paired = NOT_PAIRED

    @cached_property
    def counted(self) -> tuple[Result, ...]:
        """The runs that means are taken over: one finished run per seed, the latest."""
        finished = sorted((run for run in self.runs if run.status == "finished"), key=lambda run: run.started)
        latest = {run.seed: run for run in finished}
        return tuple(latest[seed] for seed in sorted(latest))

    @property
    def repeats(self) -> list[Result]:
        """Finished runs of a seed that a later run replaces: they are not independent of it and do not count."""
        return [run for run in self.runs if run.status == "finished" and run not in self.counted]

    @property
    def finished(self) -> int:
        """The number of seeds that the means are taken over."""
        return len(self.counted)

    def metric(self, name: str) -> Estimate:
        """The mean of a metric ("test/top1") over seeds."""
        return Estimate.of(run.metrics.get(name) for run in self.counted)

    def after(self, epochs: int) -> Estimate:
        """The validation top-1 after so many epochs of longer runs, from their curves."""
        longer = [run.curves for run in self.counted if run.epochs > epochs]
        return Estimate.of(x.get("val/top1") for curve in longer for x in curve if x.get("epoch") == epochs - 1)

    def field(self, name: str) -> Estimate:
        """The mean of a field of `Result` ("seconds") over seeds."""
        return Estimate.of(getattr(run, name) for run in self.counted)

    @cached_property
    def top1(self) -> Estimate:
        """The top-1 on the test images, a fraction."""
        return self.metric("test/top1")

    @cached_property
    def objective(self) -> Estimate | None:
        """The top-1 on held-out training images of a trial of a search, which never reads the test images."""
        return None if self.top1.n else self.metric("val/top1")

    @property
    def comparable(self) -> bool:
        """Whether the row agrees with the reference in everything that a comparison needs."""
        return not self.differs

    @cached_property
    def config(self) -> Result:
        """The run that represents the configuration: a counted one where there is one."""
        return best_known(self.counted or self.runs)

    def known(self, name: str) -> Any:
        """A field of the configuration, from the first run that knows it."""
        return next((value for run in (*self.counted, *self.runs) if (value := getattr(run, name)) is not None), None)

    @cached_property
    def published(self) -> Published | None:
        """The published numbers of this configuration."""
        return published(self.config)

    @property
    def is_baseline(self) -> bool:
        """Whether other rows are paired with this one."""
        return self.paired.baseline == self.name

    def count(self, status: str) -> int:
        """The number of runs that have the status."""
        return sum(run.status == status for run in self.runs)

    @property
    def troubles(self) -> str:
        """The runs that have no numbers, counted: "1 failed, 2 running", or ""."""
        return ", ".join(f"{n} {status}" for status in WITHOUT_NUMBERS if (n := self.count(status)))


@dataclass(frozen=True)
class Comparison:
    """Rows by falling top-1, the places that could not be read, and the name of the baseline.

    `margin`: differences within it, in points, count as none. `curve_epochs`: after so many epochs the table has the
    validation top-1 beside the one at the end.
    """

    rows: tuple[Row, ...]
    unreadable: tuple[UnreadableResultError, ...] = ()
    baseline: str = BASELINE
    margin: float = 1.0
    curve_epochs: tuple[int, ...] = (8,)

    def __post_init__(self) -> None:
        if not self.margin > 0:
            raise UsageError(f"margin is {self.margin:g}, expected points of accuracy above 0, such as 1")
        if wrong := [n for n in self.curve_epochs if n < 1]:
            raise UsageError(f"curve_epochs has {wrong[0]}, expected numbers of epochs from 1 on, such as 8")

    @classmethod
    def from_results(
        cls, results: Iterable[Result], unreadable: Iterable[UnreadableResultError] = (), baseline: str | None = None
    ) -> "Comparison":
        """Groups results by configuration, marks what differs from the most common one, pairs with the baseline.

        `baseline` names a model or a row (`UsageError` if there is none); by default it is softmax, `BASELINE`.
        """
        groups = group(results)
        configs = [best_known(runs) for runs in groups]
        rows = [
            Row(name, tuple(sorted(runs, key=lambda run: (run.seed, run.started))))
            for name, runs in zip(names_of(configs, shared_overrides(configs)), groups, strict=True)
        ]
        known = {row.name for row in rows} | {config.model for config in configs}
        if baseline is not None and baseline not in known:
            there = ", ".join(sorted(known)) or "none"
            raise UsageError(f"no row or model named {baseline} to compare with; there are: {there}")
        candidates = [row.config for row in rows if row.finished] or configs
        signatures = [config.signature for config in candidates]
        reference = max(candidates, key=lambda config: signatures.count(config.signature), default=None)
        rows = [
            replace(row, differs=(*differences(row.config, reference), *older_code(row.runs, groups)))
            for row in rows
            if reference
        ]
        rows = _paired(rows, baseline or BASELINE)
        rows.sort(key=lambda row: -1.0 if (top1 := (row.objective or row.top1).mean) is None else top1, reverse=True)
        return cls(tuple(rows), tuple(unreadable), baseline or BASELINE)

    @classmethod
    def from_dirs(cls, dirs: Iterable[str | Path], baseline: str | None = None) -> "Comparison":
        """Reads every `result.json` in and below the folders, with the measurements stored beside it.

        `run_dir` becomes the folder where it was found. A file that cannot be read, or a folder without any, becomes an
        entry of `unreadable`. Only a path that does not exist raises `UsageError`.
        """
        results: list[Result] = []
        unreadable: list[UnreadableResultError] = []
        found = {directory: find_results(directory) for directory in dirs}
        for path in {path.resolve(): path for paths in found.values() for path in paths}.values():
            try:
                results.append(replace(Result.read(path), run_dir=str(path.parent)))
            except UnreadableResultError as error:
                unreadable.append(error)
        empty = [folder for folder, paths in found.items() if not paths]
        unreadable += [UnreadableResultError(folder, f"no {RESULT_FILE} in it") for folder in empty]
        results, errors = with_evaluations(results)
        return cls.from_results(results, [*unreadable, *errors], baseline)

    @cached_property
    def decided(self) -> dict[str, tuple[float, float]]:
        """For each row with an interval of its paired difference: the p-values that there is none, and one of `margin`.

        Corrected by Holm over all rows.
        """
        paired = {row.name: row.paired.top1 for row in self.rows if row.paired.top1.half_width is not None}
        different = holm([p_different(top1) for top1 in paired.values()])
        equivalent = holm([p_equivalent(top1, self.margin / 100) for top1 in paired.values()])
        return dict(zip(paired, zip(different, equivalent, strict=True), strict=True))

    @property
    def readings(self) -> list[int]:
        """Those of `curve_epochs` after which any row has been validated."""
        return [epochs for epochs in self.curve_epochs if any(row.after(epochs).n for row in self.rows)]

    @property
    def runs(self) -> list[Result]:
        """Every run of every row, in the order of the rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def shared(self) -> tuple[str, ...]:
        """The overrides that all rows have, which their names leave out."""
        return shared_overrides([row.config for row in self.rows])

    @property
    def test_sets(self) -> list[str]:
        """The further test sets on which any row was measured ("imagenet_v2" has the metric "imagenet_v2/top1")."""
        metrics = {name for row in self.rows for run in row.counted for name in run.metrics}
        names = {name.removesuffix("/top1") for name in metrics if name.endswith("/top1")}
        return sorted(names - {"train", "val", "test"})

    @property
    def maps(self) -> list[str]:
        """Those of `MAP_FIGURES` that any row has."""
        return [name for name in MAP_FIGURES if any(row.metric(f"attention/{name}").n for row in self.rows)]


def find_results(path: str | Path) -> list[Path]:
    """The `result.json` files in a folder and below it, sorted; a path to such a file is itself."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; give the folder of a run or of a sweep")
    return sorted(path.rglob(RESULT_FILE))


def _paired(rows: Sequence[Row], baseline: str) -> list[Row]:
    """The rows, each with its difference to the baseline that it compares with."""
    paired: dict[str, Paired] = {}
    for row in rows:
        base = _baseline_of(row, rows, baseline)
        if base is not None and base is not row:
            paired[row.name] = Paired.of(base.name, row.counted, base.counted)
            paired[base.name] = replace(NOT_PAIRED, baseline=base.name)
    return [replace(row, paired=paired.get(row.name, NOT_PAIRED)) for row in rows]


def _baseline_of(row: Row, rows: Sequence[Row], name: str) -> Row | None:
    """The row that `row` is compared with: comparable with it, and of the model `name`, or else of that row name.

    Of several it is the one that shares most of the configuration, so that softmax with faint positions is the
    baseline of InfSA with faint positions; of equals, the one without overrides, and the latest. A convolution
    (`locality`) is what a row is measured with, so that the baseline is without.
    """
    named = [other for other in rows if other.config.model == name] or [other for other in rows if other.name == name]
    candidates = [other for other in named if other.counted and other.config.signature == row.config.signature]

    def closeness(other: Row) -> tuple[bool, bool, int, bool, str]:
        shared = sum(getattr(row.config, name) == getattr(other.config, name) for name in CONFIG_FIELDS)
        variant = other.config.variant
        return "locality=" not in variant, other is row, shared, not variant, other.config.started

    return max(candidates, key=closeness, default=None)
