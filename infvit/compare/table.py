"""From many results to one table: seeds grouped, intervals taken, and what must not be compared marked."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from infvit.compare.interval import Estimate
from infvit.compare.result import CONFIG_FIELDS, Result, UnreadableResultError
from infvit.errors import UsageError

RESULT_FILE = "result.json"
# What two rows must share to be compared at all.
SIGNATURE = ("depth", "dim", "recipe_hash", "data_fingerprint", "image_size", "epochs")


@dataclass(frozen=True)
class Unreadable:
    """A place where a result should be and none can be read."""

    path: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One configuration: all its runs, and the means over its finished seeds.

    `counted` holds one finished run per seed, the latest; an earlier one is in `repeats` and not in the means, since
    the same seed twice is no second opinion. `differs` says in words what keeps the row from being compared.
    """

    name: str
    runs: tuple[Result, ...]
    counted: tuple[Result, ...]
    repeats: tuple[Result, ...]
    top1: Estimate
    top5: Estimate
    loss: Estimate
    images_per_second: Estimate
    energy_joules_per_image: Estimate
    seconds: Estimate
    differs: tuple[str, ...] = ()

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
            energy_joules_per_image=Estimate.of(run.energy_joules_per_image for run in counted),
            seconds=Estimate.of(run.seconds for run in counted),
        )

    @property
    def comparable(self) -> bool:
        """Whether the row agrees with the reference in everything a comparison needs."""
        return not self.differs

    @property
    def config(self) -> Result:
        """The run that stands for the configuration: a counted one where there is one."""
        return _best_known(self.counted or self.runs)

    @property
    def finished(self) -> int:
        """The number of seeds that the means are taken over."""
        return len(self.counted)

    def count(self, status: str) -> int:
        """The number of runs that ended so."""
        return sum(run.status == status for run in self.runs)

    @property
    def troubles(self) -> str:
        """The runs that gave no numbers, in words: "1 failed, 2 running", or nothing."""
        counts = [(self.count(status), status) for status in ("failed", "diverged", "running")]
        return ", ".join(f"{n} {status}" for n, status in counts if n)

    def known(self, name: str) -> Any:
        """A field of the configuration, from the first run that knows it."""
        return next((value for run in (*self.counted, *self.runs) if (value := getattr(run, name)) is not None), None)

    def record(self) -> dict[str, Any]:
        """The row as raw numbers under flat names (a CSV line, a row of a W&B table)."""
        record: dict[str, Any] = {"name": self.name, "model": self.config.model, "attention": self.config.attention}
        record |= {"variant": self.config.variant, "comparable": self.comparable, "differs": "; ".join(self.differs)}
        record |= {"seeds": " ".join(str(run.seed) for run in self.counted), "finished": self.finished}
        record |= {status: self.count(status) for status in ("failed", "diverged", "running")}
        record["repeats"] = len(self.repeats)
        for name, estimate in (
            ("test_top1", self.top1),
            ("test_top5", self.top5),
            ("test_loss", self.loss),
            ("train_images_per_second", self.images_per_second),
            ("energy_joules_per_image", self.energy_joules_per_image),
            ("seconds", self.seconds),
        ):
            record |= {name: estimate.mean, f"{name}_ci95_half_width": estimate.half_width, f"{name}_n": estimate.n}
        for name in ("parameters", "macs_forward", "flops_forward", "flops_training"):
            record[name] = self.known(name)
        return record | {name: getattr(self.config, name) for name in CONFIG_FIELDS if name not in record}


@dataclass(frozen=True)
class Comparison:
    """Rows by falling top-1, the places that could not be read, and the row that the others are held against."""

    rows: tuple[Row, ...]
    unreadable: tuple[Unreadable, ...] = ()
    reference: Result | None = None

    @classmethod
    def from_results(cls, results: Iterable[Result], unreadable: Iterable[Unreadable] = ()) -> Comparison:
        """Group the results by configuration and mark what differs from the most common one."""
        groups = _group(results)
        names = _names([_best_known(group) for group in groups])
        rows = [Row.of(name, group) for name, group in zip(names, groups, strict=True)]
        reference = _reference(rows)
        if reference:
            rows = [replace(row, differs=differences(row.config, reference)) for row in rows]
        rows.sort(key=lambda row: -1.0 if row.top1.mean is None else row.top1.mean, reverse=True)
        return cls(tuple(rows), tuple(unreadable), reference)

    @classmethod
    def from_dirs(cls, dirs: Iterable[str | Path]) -> Comparison:
        """Read every `result.json` in the folders and below; `run_dir` becomes the folder where it was found.

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
        return cls.from_results(results, unreadable)

    @property
    def runs(self) -> list[Result]:
        """Every run of every row, in the order of the rows."""
        return [run for row in self.rows for run in row.runs]

    @property
    def failures(self) -> list[tuple[Row, Result]]:
        """The runs that failed or diverged, each with its row."""
        return [(row, run) for row in self.rows for run in row.runs if run.status in ("failed", "diverged")]

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
        names = list(self.rows[0].record()) if self.rows else []
        rows = [row.record() | {"path": "", "problem": ""} for row in self.rows]
        empty = dict.fromkeys(names)
        return rows + [empty | {"path": bad.path, "problem": bad.reason} for bad in self.unreadable]


def find_results(path: str | Path) -> list[Path]:
    """The `result.json` files in a folder and below it, sorted; a path to such a file is itself."""
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise UsageError(f"{path}: no such folder; give the folder of a run or of a sweep")
    return sorted(path.rglob(RESULT_FILE))


def differences(config: Result, reference: Result) -> tuple[str, ...]:
    """What keeps a configuration from being compared with the reference, in words ("depth 24, not 4")."""
    ours, theirs = _described(config, reference), _described(reference, config)
    return tuple(
        f"{ours[name]}, not {theirs[name].partition(' ')[2]}"
        for name in SIGNATURE
        if getattr(config, name) != getattr(reference, name)
    )


def _described(config: Result, other: Result) -> dict[str, str]:
    recipe = _short(config.recipe_hash, other.recipe_hash)
    data = _short(config.data_fingerprint, other.data_fingerprint)
    return {
        "depth": f"depth {config.depth}",
        "dim": f"width {config.dim}",
        "recipe_hash": f"recipe {config.recipe}#{recipe}",
        "data_fingerprint": f"data {config.data}#{data}",
        "image_size": f"resolution {config.image_size}",
        "epochs": f"epochs {config.epochs}",
    }


def _short(digest: str, other: str = "") -> str:
    return digest if digest[:8] == other[:8] else digest[:8] or "unknown"


def _group(results: Iterable[Result]) -> list[list[Result]]:
    groups: dict[tuple[Any, ...], list[Result]] = {}
    results = list(results)
    for run in results:
        groups.setdefault(run.config_key, [])
    for run in results:
        groups[_home(run, list(groups))].append(run)
    return [group for group in groups.values() if group]


def _home(run: Result, keys: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    """The group of a run. One that ended before it knew its data or model joins the first group it may belong to."""
    own = run.config_key
    open_ends = [value in (None, "") and name != "variant" for name, value in zip(CONFIG_FIELDS, own, strict=True)]
    if run.status == "finished" or not any(open_ends):
        return own
    for key in keys:
        if key != own and all(o or mine == its for o, mine, its in zip(open_ends, own, key, strict=True)):
            return key
    return own


def _best_known(runs: Sequence[Result]) -> Result:
    return max(runs, key=lambda run: sum(value not in (None, "") for value in run.config_key))


def _reference(rows: Sequence[Row]) -> Result | None:
    candidates = [row.config for row in rows if row.finished] or [row.config for row in rows]
    if not candidates:
        return None
    signatures = [tuple(getattr(config, name) for name in SIGNATURE) for config in candidates]
    # Of equally common signatures, Counter keeps the one that came first.
    return candidates[signatures.index(Counter(signatures).most_common(1)[0][0])]


def _names(configs: Sequence[Result]) -> list[str]:
    """A name for each configuration: its model, and where several share one, what tells them apart."""
    plain = [" ".join(filter(None, (config.model, config.variant))) for config in configs]
    names = []
    for config, name in zip(configs, plain, strict=True):
        alike = [other for other, theirs in zip(configs, plain, strict=True) if theirs == name]
        telling = [field for field in CONFIG_FIELDS if len({getattr(other, field) for other in alike}) > 1]
        for named, digest in (("recipe", "recipe_hash"), ("data", "data_fingerprint")):
            pairs = {(getattr(other, named), getattr(other, digest)) for other in alike}
            if named in telling and len({first for first, _ in pairs}) == len(pairs):
                telling.remove(digest)
        words = [f"{field}={getattr(config, field)}" for field in telling]
        names.append(f"{name} ({', '.join(words)})" if words else name)
    return names
