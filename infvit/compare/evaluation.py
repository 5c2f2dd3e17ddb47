"""What is measured of a finished run later, beside its `result.json`.

`RUN/evaluations/<data>-<fingerprint>.json` is its accuracy on other data than its own, `RUN/attention.json` how good
its maps are.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from infvit.run.files import atomic_write
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError

EVALUATIONS = "evaluations"
METRICS = ("top1", "top5", "loss")

SHORT = 8
"""Digits of a fingerprint that tell data of one name apart."""

MAPS_FILE = "attention.json"
MAP_FIGURES = {"morf_aoc": "MoRF-AOC", "roc_auc": "ROC-AUC", "pr_auc": "PR-AUC"}
"""Of the maps of a model's own attention, by their headings."""


def keep(run_dir: Path, row: dict[str, Any]) -> Path | None:
    """Keep an evaluation beside the run's result, which stays as it is; returns the file.

    The same data measured again replace what was there. None if there is nothing to keep: the data are the run's own,
    or the run has not finished, so that the checkpoint is not yet what its row in a table stands for.

    Args:
        run_dir: the run's folder.
        row: of the run's last checkpoint: "data" and "fingerprint", the accuracies "top1" and "top5" as fractions,
            "loss", and what else is known.
    """
    try:
        result = Result.read(run_dir / RESULT_FILE)
    except UnreadableResultError:
        return None
    if result.status != "finished" or result.data_fingerprint == row["fingerprint"]:
        return None
    # Different data may have one name, as every data=imagefolder without data.name=NAME.
    path = run_dir / EVALUATIONS / f"{row['data'].replace('/', '_')}-{row['fingerprint'][:SHORT]}.json"
    path.parent.mkdir(exist_ok=True)
    # A run that is started again in the same folder has another checkpoint: `started` tells whose evaluation this is.
    atomic_write(path, json.dumps(row | {"run_started": result.started}, indent=2) + "\n")
    return path


def keep_maps(run_dir: Path, figures: dict[str, Any], fingerprint: str, how: str) -> Path | None:
    """Keep the quality of a run's maps beside its result, which stays as it is; returns the file.

    None if there is nothing to keep: they are of other data than the run's own, or the run has not finished.

    Args:
        run_dir: the run's folder.
        figures: `MAP_FIGURES` as fractions, None where one was not measured.
        fingerprint: of the data.
        how: it was measured, in words; figures measured differently do not compare.
    """
    try:
        result = Result.read(run_dir / RESULT_FILE)
    except UnreadableResultError:
        return None
    if result.status != "finished" or result.data_fingerprint != fingerprint:
        return None
    path = run_dir / MAPS_FILE
    atomic_write(path, json.dumps(figures | {"how": how, "run_started": result.started}, indent=2) + "\n")
    return path


def with_maps(results: Iterable[Result]) -> tuple[list[Result], list[UnreadableResultError]]:
    """The results with the quality of their maps as metrics "attention/morf_aoc", and the files that hold none.

    How it was measured is `extra["maps"]`.
    """
    together: list[Result] = []
    unreadable: list[UnreadableResultError] = []
    for result in results:
        path = Path(result.run_dir) / MAPS_FILE
        if path.is_file():
            try:
                row = _read_maps(path, result)
                figures = {f"attention/{name}": row[name] for name in MAP_FIGURES if row.get(name) is not None}
                result = replace(result, metrics=result.metrics | figures, extra=result.extra | {"maps": row["how"]})
            except UnreadableResultError as error:
                unreadable.append(error)
        together.append(result)
    return together, unreadable


def with_evaluations(results: Iterable[Result]) -> tuple[list[Result], list[UnreadableResultError]]:
    """The results with the evaluations in their `run_dir` as metrics "<data>/top1", and the files that are none.

    Different data of one name have the fingerprint in it ("imagefolder#1a2b3c4d"), unless they were named when they
    were measured (data.name=NAME).
    """
    results = list(results)
    found: list[list[dict[str, Any]]] = []
    unreadable: list[UnreadableResultError] = []
    for result in results:
        found.append([])
        files = (Path(result.run_dir) / EVALUATIONS).glob("*.json")
        for path in sorted(files, key=lambda path: path.stat().st_mtime_ns):  # of one measured twice the last counts
            try:
                found[-1].append(_read(path, result))
            except UnreadableResultError as error:
                unreadable.append(error)
    prints: dict[str, set[str]] = {}
    for row in (row for rows in found for row in rows):
        prints.setdefault(row["data"], set()).add(row["fingerprint"])
    together = []
    for result, rows in zip(results, found, strict=True):
        metrics = dict(result.metrics)
        for row in rows:
            several = len(prints[row["data"]]) > 1
            name = row["data"] + (f"#{row['fingerprint'][:SHORT]}" if several else "")
            metrics |= {f"{name}/{metric}": row[metric] for metric in METRICS if metric in row}
        together.append(replace(result, metrics=metrics))
    return together, unreadable


def _read(path: Path, result: Result) -> dict[str, Any]:
    row = _json(path)
    texts = isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("data", "fingerprint"))
    if not texts or row["data"] in ("", "train", "val", "test") or not all(_number(row.get(name)) for name in METRICS):
        raise UnreadableResultError(path, "is no evaluation: expected data, fingerprint, top1, top5 and loss")
    return _of_this(path, row, result)


def _read_maps(path: Path, result: Result) -> dict[str, Any]:
    row = _json(path)
    whole = isinstance(row, dict) and isinstance(row.get("how"), str)
    if not whole or not all(row.get(name) is None or _number(row[name]) for name in MAP_FIGURES):
        raise UnreadableResultError(path, f"is no quality of maps: expected how and {', '.join(MAP_FIGURES)}")
    return _of_this(path, row, result)


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableResultError(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UnreadableResultError(path, "is not JSON: measure again with eval.py") from error


def _of_this(path: Path, row: dict[str, Any], result: Result) -> dict[str, Any]:
    if row.get("run_started") != result.started:
        raise UnreadableResultError(path, "is of an earlier run in this folder: measure again with eval.py")
    return row


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
