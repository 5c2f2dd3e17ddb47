"""`eval=accuracy`: top-1, top-5, loss, calibration and ReaL labels of trained models, with intervals and by class."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

from infvit.compare.evaluation import keep
from infvit.errors import UsageError
from infvit.measure.accuracy import bootstrap, table
from infvit.measure.accuracy.real import Real
from infvit.measure.accuracy.records import Records, record
from infvit.measure.accuracy.scores import BINS, Score, difference, scores
from infvit.measure.model_source import LoadedRun, ModelSource, labelled

PIPELINES = {"exact": ("exact",), "ffcv": ("ffcv",), "both": ("exact", "ffcv")}


@dataclass(frozen=True)
class Evaluation:
    """The records of one model on its images by one pipeline, under a label that no other model has."""

    label: str
    pipeline: str
    run: LoadedRun
    records: Records

    @property
    def file_stem(self) -> str:
        return f"{self.label.replace('/', '_')}.{self.pipeline}"


def accuracy(
    source: ModelSource,
    out: Path,
    checkpoints: str | Sequence[str] | None,
    models: str | Sequence[str] | None,
    weights: str | Sequence[str] | None,
    pipeline: Literal["exact", "ffcv", "both"],
    readers: dict[str, Any],
) -> float:
    """Measures checkpoints and models of timm; returns the top-1 accuracy of the first.

    Writes `accuracy.json`, a row for each model and pipeline; `differences.json`, of each model to the first on the
    same images and between the pipelines; and for each row its records by image (.npz) and its classes (.csv). The
    row of a run's last checkpoint by the exact pipeline on other data than its own also goes into the run's folder,
    for the tables of `infvit.compare`. conf/eval/accuracy.yaml explains the arguments.
    """
    runs = _load(source, _listed(checkpoints), _listed(models), _listed(weights))
    # Whatever is missing, of the data or of the readers, is reported before anything is measured.
    fingerprints = {run.data.fingerprint for run in runs}
    made = {name: readers[name]() for name in PIPELINES[pipeline]}
    trainer = source.trainer()
    evaluations = []
    for label, run in labelled(runs).items():
        if trainer.is_global_zero:
            print(f"{label}: {run.checkpoint or run.weights}\n  {run.data.evaluation_view}", flush=True)
        for name, reader in made.items():
            records = record(run.model, run.data.test_with(reader), trainer, label)
            evaluation = Evaluation(label, name, run, records)
            evaluations.append(evaluation)
            if trainer.is_global_zero:
                records.write(out / f"{evaluation.file_stem}.npz")
                where = f"{label} on {run.data.name}, {len(records):,} images, {name} pipeline"
                print(f"{where}: top-1 {100 * records.correct.mean():.2f}%", flush=True)
    if trainer.is_global_zero:
        _report(evaluations, str(trainer.precision), len(fingerprints) > 1, out)
    return float(evaluations[0].records.correct.mean())


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _load(source: ModelSource, checkpoints: list[str], models: list[str], weights: list[str]) -> list[LoadedRun]:
    if not checkpoints and not models:
        raise UsageError(
            "nothing to evaluate: give ckpt=RUN/checkpoints/last.ckpt, or model=timm model.name=NAME data=imagenet"
        )
    if weights and len(weights) != len(models):
        raise UsageError(
            f"weights= names {len(weights)} files and model.name= {len(models)} models of timm: give one for each"
        )
    files: list[str | None] = [*weights] or [None] * len(models)
    runs = [source.load(checkpoint) for checkpoint in checkpoints]
    return runs + [source.pretrained(name, file) for name, file in zip(models, files, strict=True)]


def _report(evaluations: list[Evaluation], precision: str, several_data: bool, out: Path) -> None:
    """Writes the rows, the differences and the classes, and prints them as tables with their notes."""
    rows, classes, notes = [], [], []
    for one in evaluations:
        run, names = one.run, one.run.data.classes
        real = Real.of(one.records, run.data.paths, names)
        found, by_class = scores(one.records, real)
        row: dict[str, Any] = {"name": one.label, "model": run.name, "ckpt": run.checkpoint, "weights": run.weights}
        row |= {"data": run.data.name, "fingerprint": run.data.fingerprint, "view": run.data.evaluation_view}
        row |= {"precision": precision, "pipeline": one.pipeline, "images": len(one.records)}
        for name in ("top1", "top5", "loss", "ece", "real_top1", "real_top5"):
            row |= _named(name, found.get(name))
        row["real_images"] = int(real.labelled.sum()) if real else None
        rows.append(row)
        if one.pipeline == evaluations[0].pipeline:
            classes.append(table.best_and_worst(f"{one.label}, {one.pipeline}", names, by_class))
        table.write_classes(out / f"{one.file_stem}.classes.csv", names, by_class)
        notes.append(table.about_real(row, names))
        if run.run_dir and one.pipeline == "exact":
            notes.append(_keep(run.run_dir, row, run.is_last))
    differences = _differences(evaluations)
    method = {"resamples": bootstrap.RESAMPLES, "seed": bootstrap.SEED, "calibration_bins": BINS}
    shown = {"accuracy": (rows, table.scores), "differences": (differences, table.differences)}
    for name, (listed, as_text) in shown.items():
        if listed:
            (out / f"{name}.json").write_text(json.dumps({"rows": listed} | method, indent=2) + "\n")
            print("", as_text(listed), sep="\n")
    if any(one.pipeline == "ffcv" for one in evaluations):
        notes.append("ffcv resizes with OpenCV's area filter: report the numbers of exact.")
    if several_data:
        notes.append("Models measured on different images have no differences: data= gives all of them the same.")
    print("", *classes, "", bootstrap.METHOD, f"ECE: calibration error of the softmax, {BINS} bins.", sep="\n")
    print(*dict.fromkeys(filter(None, notes)), out / "accuracy.json", sep="\n")


def _named(name: str, score: Score | None) -> dict[str, float | None]:
    return dict(zip((name, f"{name}_low", f"{name}_high"), score or (None, None, None), strict=True))


def _keep(run_dir: Path, row: dict[str, Any], is_last: bool) -> str:
    """Stores the row beside the run's result if it is of the last checkpoint; returns a line that says where."""
    if not is_last:
        return f"{row['ckpt']} is not its run's last checkpoint: no column of the run's table"
    path = keep(run_dir, row)
    return f"{path}: a column of the run's table, by python -m infvit.compare" if path else ""


def _differences(evaluations: list[Evaluation]) -> list[dict[str, Any]]:
    """Rows: each model minus the first by one pipeline, and the second pipeline minus the first for one model."""
    rows = []
    for one, other in combinations(evaluations, 2):
        models = one.pipeline == other.pipeline and one.label == evaluations[0].label
        same_images = one.run.data.fingerprint == other.run.data.fingerprint
        if same_images and (models or one.label == other.label):
            top1, differing = difference(other.records, one.records)
            row: dict[str, Any] = {"name": other.label, "pipeline": other.pipeline}
            row |= {"minus": one.label, "minus_pipeline": one.pipeline}
            rows.append(row | {"images": len(one.records), "differing": differing} | _named("top1", top1))
    return rows
