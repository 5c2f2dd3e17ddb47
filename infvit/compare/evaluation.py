"""Measurements of a finished run that are stored beside its `result.json`.

`RUN/evaluations/<data>-<fingerprint>.json` is its accuracy on other data than its own; `RUN/attention.json` has the
scores of its attention maps.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from infvit.run.files import atomic_write
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError

EVALUATIONS = "evaluations"
METRICS = ("top1", "top5", "loss")
DIGITS = 8
"""Of a fingerprint, in names."""

MAPS_FILE = "attention.json"
MAP_FIGURES = {"morf_aoc": "MoRF-AOC", "roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}
"""Scores of the maps of a model's own attention, with their headings."""


def keep(run_dir: Path, row: dict[str, Any]) -> Path | None:
    """Writes an evaluation beside the run's result, over an earlier one of the same data; returns the file.

    Returns None, and writes nothing, if the data are the run's own, or if the run has not finished: its checkpoint is
    not yet the one that its row in a table stands for.

    Args:
        run_dir: the run's folder.
        row: of the run's last checkpoint: "data" and "fingerprint", the accuracies "top1" and "top5" as fractions,
            "loss", and any further values.
    """
    result = _finished(run_dir)
    if result is None or result.data_fingerprint == row["fingerprint"]:
        return None
    # Different data may have one name, as every data=imagefolder without data.name=NAME.
    path = run_dir / EVALUATIONS / f"{row['data'].replace('/', '_')}-{row['fingerprint'][:DIGITS]}.json"
    path.parent.mkdir(exist_ok=True)
    return _write(path, row, result)


def keep_maps(run_dir: Path, figures: dict[str, Any], fingerprint: str, how: str) -> Path | None:
    """Writes the scores of a run's maps beside its result; returns the file.

    Returns None, and writes nothing, if they are of other data than the run's own, or if the run has not finished.

    Args:
        run_dir: the run's folder.
        figures: `MAP_FIGURES` as fractions, None where one was not measured.
        fingerprint: of the data.
        how: the settings of the measurement in words; scores of different settings do not compare.
    """
    result = _finished(run_dir)
    if result is None or result.data_fingerprint != fingerprint:
        return None
    return _write(run_dir / MAPS_FILE, figures | {"how": how}, result)


def with_evaluations(results: Iterable[Result]) -> tuple[list[Result], list[UnreadableResultError]]:
    """The results with what is stored in their `run_dir` as metrics, and the errors of files that cannot be used.

    Accuracies become "<data>/top1", with the fingerprint where different data have one name
    ("imagefolder#1a2b3c4d/top1"). Scores of maps become "attention/morf_aoc", their settings `extra["maps"]`.
    """
    results = list(results)
    errors: list[UnreadableResultError] = []

    def readable(result: Result, paths: Iterable[Path], **expected: Iterable[str]) -> Iterator[dict[str, Any]]:
        for path in paths:
            try:
                yield _read(path, result, **expected)
            except UnreadableResultError as error:
                errors.append(error)

    evaluations, maps = [], []
    for result in results:
        folder = Path(result.run_dir)
        # Of one measured twice the last counts.
        files = sorted((folder / EVALUATIONS).glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        evaluations.append([*readable(result, files, texts=("data", "fingerprint"), numbers=METRICS)])
        files = [folder / MAPS_FILE] if (folder / MAPS_FILE).is_file() else []
        maps.append([*readable(result, files, texts=("how",), optional=MAP_FIGURES)])
    data = Counter(name for name, _ in {(row["data"], row["fingerprint"]) for rows in evaluations for row in rows})
    together = []
    for result, rows, of_maps in zip(results, evaluations, maps, strict=True):
        metrics, extra = dict(result.metrics), dict(result.extra)
        for row in rows:
            name = row["data"] + (f"#{row['fingerprint'][:DIGITS]}" if data[row["data"]] > 1 else "")
            metrics |= {f"{name}/{metric}": row[metric] for metric in METRICS}
        for row in of_maps:
            metrics |= {f"attention/{name}": row[name] for name in MAP_FIGURES if row.get(name) is not None}
            extra["maps"] = row["how"]
        together.append(replace(result, metrics=metrics, extra=extra))
    return together, errors


def _finished(run_dir: Path) -> Result | None:
    try:
        result = Result.read(run_dir / RESULT_FILE)
    except UnreadableResultError:
        return None
    return result if result.status == "finished" else None


def _write(path: Path, row: dict[str, Any], result: Result) -> Path:
    # A run that starts again in the same folder writes another checkpoint: `run_started` identifies the measured one.
    atomic_write(path, json.dumps(row | {"run_started": result.started}, indent=2) + "\n")
    return path


def _read(
    path: Path, result: Result, texts: Iterable[str], numbers: Iterable[str] = (), optional: Iterable[str] = ()
) -> dict[str, Any]:
    """A measurement of the run; raises `UnreadableResultError` for one without these values, or of another run."""
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableResultError(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UnreadableResultError(path, "is not JSON: measure again with eval.py") from error
    valid = (
        isinstance(row, dict)
        and all(isinstance(row.get(name), str) for name in texts)
        and all(_is_number(row.get(name)) for name in numbers)
        and all(row.get(name) is None or _is_number(row[name]) for name in optional)
        and row.get("data") not in ("", "train", "val", "test")
    )
    if not valid:
        raise UnreadableResultError(path, f"is not a measurement: expected {', '.join((*texts, *numbers, *optional))}")
    if row.get("run_started") != result.started:
        raise UnreadableResultError(path, "is of an earlier run in this folder: measure again with eval.py")
    return dict(row)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
