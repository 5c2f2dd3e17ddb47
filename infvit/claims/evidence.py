"""What is known here of a claim: cells and sentences of this repository's tables, and results of runs."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from infvit.compare.comparison import Comparison, Row
from infvit.compare.notes import flat
from infvit.errors import UsageError
from infvit.tables.numbers import percent, plus_minus, three_digits

ROOT = Path(__file__).parents[2]


def filled(text: str, sources: dict[str, dict[str, str]]) -> str:
    """The text with every [[source: section | row | column]] replaced by that cell of the source's Markdown.

    A row with cells a and b is found by "a & b"; an empty first cell has the value above it. [[source: words]] stands
    for the words, which the source must contain.
    """

    def value(found: re.Match[str]) -> str:
        file, (section, *place) = sources[found[1]]["file"], found[2].split(" | ")
        try:
            page = (ROOT / file).read_text(encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"{file} is not here: run python -m infvit.claims of a checkout of the repository"
            ) from error
        known = cell(page, section, *place) if place else section if section in " ".join(page.split()) else None
        if known is None:
            raise UsageError(f"{file} has no {found[2]}: correct infvit/claims/claims.yaml, which names it")
        return known

    return re.sub(r"\[\[(\w+): (.*?)\]\]", value, text)


def cell(page: str, section: str, row: str, column: str) -> str | None:
    """A cell of the first table of a section that has the row and the column, or None."""
    _, heading, rest = page.partition(f"# {section}")
    columns: list[str] = []
    first = ""
    for line in re.split(r"\n#+ ", rest)[0].splitlines() if heading else []:
        cells = [words.strip() for words in line.strip("| ").split("|")] if line.startswith("|") else []
        if not cells:
            columns = []
        elif not columns:
            columns = cells
        else:
            # strip("| ") takes an empty first cell with it.
            cells = ["", *cells] if len(cells) < len(columns) else cells
            first = cells[0] = cells[0] or first
            if cells[: row.count(" & ") + 1] == row.split(" & ") and column in columns:
                return cells[columns.index(column)]
    return None


@dataclass(frozen=True)
class Runs:
    """The runs of some folders, compared, and the rows of `efficiency.json` files, each with its hardware."""

    comparison: Comparison
    timed: list[dict[str, Any]]

    @classmethod
    def found_in(cls, folders: list[str]) -> "Runs":
        """Reads every `result.json` and `efficiency.json` below the folders."""
        timed = []
        for path in (path for folder in folders for path in sorted(Path(folder).rglob("efficiency.json"))):
            try:
                content = json.loads(path.read_text(encoding="utf-8"))
                timed += [row | {"hardware": content["hardware"]} for row in content["rows"]]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise UsageError(f"{path} is not a measurement of eval=efficiency: measure again") from error
        return cls(Comparison.from_dirs(folders), timed)

    def of(self, spec: dict[str, Any]) -> list[str]:
        """What the runs give for a claim, a text for each row: `spec` has a model and a metric or a column of times."""
        if "column" in spec:
            place = (spec["model"], 1024, "forward")
            timed = [row for row in self.timed if (row["model"], row["resolution"], row["pass"]) == place]
            return [_time(row, spec["column"], spec.get("unit", 1)) for row in timed if row[spec["column"]] is not None]
        return [_metric(row, spec["metric"]) for row in self._rows(spec)]

    def settles(self, spec: dict[str, Any]) -> bool:
        """Whether a row is of the published configuration itself."""
        return "metric" in spec and any(row.published for row in self._rows(spec))

    def _rows(self, spec: dict[str, Any]) -> list[Row]:
        model = spec["model"], spec.get("depth", 4)
        rows = [row for row in self.comparison.rows if (row.config.model, row.config.depth) == model]
        return [row for row in rows if row.metric(spec["metric"]).n]


def _time(row: dict[str, Any], column: str, unit: float) -> str:
    middle, low, high = (three_digits(unit * row[f"{column}{end}"]) for end in ("", "_low", "_high"))
    return f"{middle} ({low} – {high}) on {flat(row['hardware'])}"


def _metric(row: Row, metric: str) -> str:
    run, paired = row.config, row.paired.top1
    value = plus_minus(row.metric(metric), percent)
    difference = f", Δ {plus_minus(paired)}" if metric == "test/top1" and paired.n else ""
    return (
        f"{run.data}, {run.epochs} epochs, {row.finished} seeds: {value}{difference} ({row.name}; {flat(run.hardware)})"
    )
