"""Measurements of a finished run that are stored beside its `result.json`.

`RUN/evaluations/<data>-<fingerprint>.json` is its accuracy on other data than its own; `RUN/attention.json` has the
scores of its attention maps.
"""

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, FiniteFloat, ValidationError

from infvit.run.files import atomic_write
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError

EVALUATIONS = "evaluations"
DIGITS = 8
"""Of a fingerprint, in names."""

MAPS_FILE = "attention.json"
MAP_FIGURES = {"morf_aoc": "MoRF-AOC", "roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}
"""Scores of the maps of a model's own attention, with their headings."""


class Accuracy(BaseModel, strict=True):
    """An evaluation on other data: accuracies are fractions; `run_started` identifies the run that was measured."""

    data: str
    fingerprint: str
    top1: FiniteFloat
    top5: FiniteFloat
    loss: FiniteFloat
    run_started: str


class Maps(BaseModel, strict=True):
    """The scores of a run's maps as fractions, None where one was not measured, and the settings in words."""

    how: str
    morf_aoc: FiniteFloat | None = None
    roc_auc: FiniteFloat | None = None
    pr_auc: FiniteFloat | None = None
    run_started: str


def keep(run_dir: Path, row: dict[str, Any]) -> Path | None:
    """Writes an evaluation beside the run's result, over an earlier one of the same data; returns the file.

    Returns None, and writes nothing, if the data are the run's own, or if the run has not finished: its checkpoint is
    not yet the one that its row in a table stands for. `row` has the values of `Accuracy` but the last, and any
    further ones, of the run's last checkpoint.
    """
    # Different data may have one name, as every data=imagefolder without data.name=NAME.
    name = f"{row['data'].replace('/', '_')}-{row['fingerprint'][:DIGITS]}.json"
    return _keep(run_dir, f"{EVALUATIONS}/{name}", row, row["fingerprint"], of_own_data=False)


def keep_maps(run_dir: Path, figures: dict[str, Any], fingerprint: str, how: str) -> Path | None:
    """Writes the scores of a run's maps, the values of `Maps`, beside its result; returns the file.

    Returns None, and writes nothing, if they are of other data than the run's own, or if the run has not finished.
    Scores that differ in `how` do not compare.
    """
    return _keep(run_dir, MAPS_FILE, figures | {"how": how}, fingerprint, of_own_data=True)


def _keep(run_dir: Path, name: str, row: dict[str, Any], fingerprint: str, of_own_data: bool) -> Path | None:
    try:
        result = Result.read(run_dir / RESULT_FILE)
    except UnreadableResultError:
        return None
    if result.status != "finished" or (result.data_fingerprint == fingerprint) != of_own_data:
        return None
    path = run_dir / name
    path.parent.mkdir(exist_ok=True)
    # A run that starts again in the same folder writes another checkpoint: `run_started` identifies the measured one.
    atomic_write(path, json.dumps(row | {"run_started": result.started}, indent=2) + "\n")
    return path


def with_evaluations(results: Iterable[Result]) -> tuple[list[Result], list[UnreadableResultError]]:
    """The results with what is stored in their `run_dir` as metrics, and the errors of files that cannot be used.

    Accuracies become "<data>/top1", with the fingerprint where different data have one name
    ("imagefolder#1a2b3c4d/top1"). Scores of maps become "attention/morf_aoc", their settings `extra["maps"]`.
    """
    errors: list[UnreadableResultError] = []
    stored: list[tuple[Result, list[Accuracy | Maps]]] = []
    for result in results:
        rows: list[Accuracy | Maps] = []
        folder = Path(result.run_dir)
        for path in (*sorted((folder / EVALUATIONS).glob("*.json")), *folder.glob(MAPS_FILE)):
            try:
                rows.append(_read(path, result))
            except UnreadableResultError as error:
                errors.append(error)
        stored.append((result, rows))
    data = {(row.data, row.fingerprint) for _, rows in stored for row in rows if isinstance(row, Accuracy)}
    # A run has metrics of the first three names for its own data.
    uses = Counter(["train", "val", "test", *(name for name, _ in data)])
    together = []
    for result, rows in stored:
        metrics, extra = dict(result.metrics), dict(result.extra)
        for row in rows:
            if isinstance(row, Maps):
                extra["maps"] = row.how
                metrics |= {f"attention/{name}": x for name in MAP_FIGURES if (x := getattr(row, name)) is not None}
            else:
                name = f"{row.data}#{row.fingerprint[:DIGITS]}" if uses[row.data] > 1 else row.data
                metrics |= {f"{name}/top1": row.top1, f"{name}/top5": row.top5, f"{name}/loss": row.loss}
        together.append(replace(result, metrics=metrics, extra=extra))
    return together, errors


def _read(path: Path, result: Result) -> Accuracy | Maps:
    """A measurement of the run; raises `UnreadableResultError` for one without its values, or of another run."""
    kind = Maps if path.name == MAPS_FILE else Accuracy
    try:
        row = kind.model_validate_json(path.read_bytes())
    except OSError as error:
        raise UnreadableResultError(path, f"cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        reason = f"is not a measurement: expected {', '.join(kind.model_fields)}; measure again with eval.py"
        raise UnreadableResultError(path, reason) from error
    if row.run_started != result.started:
        raise UnreadableResultError(path, "is of an earlier run in this folder: measure again with eval.py")
    return row
