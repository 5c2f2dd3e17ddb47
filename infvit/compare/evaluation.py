"""What a finished run scores on other data than its own: `RUN/evaluations/<data>.json`, beside its `result.json`."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from infvit.compare.result import RESULT_FILE, Result, UnreadableResultError, written_whole

EVALUATIONS = "evaluations"
METRICS = ("top1", "top5", "loss")


def keep(run_dir: Path, row: dict[str, Any]) -> Path | None:
    """Keep an evaluation beside the run's result, which stays as it is; returns the file.

    None if there is nothing to keep: the data are the run's own, or the run has not finished, so that the checkpoint is
    not yet what its row in a table stands for.

    Args:
        run_dir: the run's folder.
        row: "data" and "fingerprint", the accuracies "top1" and "top5" as fractions, "loss", and what else is known.
    """
    try:
        result = Result.read(run_dir / RESULT_FILE)
    except UnreadableResultError:
        return None
    if result.status != "finished" or result.data_fingerprint == row["fingerprint"]:
        return None
    path = run_dir / EVALUATIONS / f"{row['data']}.json"
    path.parent.mkdir(exist_ok=True)
    # A run that is started again in the same folder has another checkpoint: `started` tells whose evaluation this is.
    written_whole(path, json.dumps(row | {"run_started": result.started}, indent=2) + "\n")
    return path


def with_evaluations(results: Iterable[Result]) -> tuple[list[Result], list[UnreadableResultError]]:
    """The results with the evaluations in their `run_dir` as metrics "<data>/top1", and the files that are none.

    Where runs were evaluated on different data of one name, the name gets the fingerprint ("imagefolder#1a2b3c4d").
    """
    results = list(results)
    found: list[list[dict[str, Any]]] = []
    unreadable: list[UnreadableResultError] = []
    for result in results:
        found.append([])
        for path in sorted((Path(result.run_dir) / EVALUATIONS).glob("*.json")):
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
            name = row["data"] + (f"#{row['fingerprint'][:8]}" if several else "")
            metrics |= {f"{name}/{metric}": row[metric] for metric in METRICS if metric in row}
        together.append(replace(result, metrics=metrics))
    return together, unreadable


def _read(path: Path, result: Result) -> dict[str, Any]:
    try:
        row = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UnreadableResultError(path, f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UnreadableResultError(path, "is not JSON: measure again with eval.py") from error
    texts = isinstance(row, dict) and all(isinstance(row.get(name), str) for name in ("data", "fingerprint"))
    if not texts or row["data"] in ("", "train", "val", "test") or not all(_number(row.get(name)) for name in METRICS):
        raise UnreadableResultError(path, "is no evaluation: expected data, fingerprint, top1, top5 and loss")
    if row.get("run_started") != result.started:
        raise UnreadableResultError(path, "is of an earlier run in this folder: measure again with eval.py")
    return row


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
