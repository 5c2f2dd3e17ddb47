"""How good trained models are: top-1, top-5, loss, calibration and ReaL labels with intervals, in all and by class."""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from infvit.compare.evaluation import keep
from infvit.errors import UsageError
from infvit.measure.accuracy import bootstrap, table
from infvit.measure.accuracy.real import Real
from infvit.measure.accuracy.records import Records, record
from infvit.measure.accuracy.scores import BINS, difference, scores
from infvit.measure.subjects import Subjects, Trained

PIPELINES = {"exact": ("exact",), "ffcv": ("ffcv",), "both": ("exact", "ffcv")}


class _Evaluation(NamedTuple):
    label: str
    pipeline: str
    subject: Trained
    records: Records

    @property
    def file(self) -> str:
        """What the names of its files begin with."""
        return f"{self.label.replace('/', '_')}.{self.pipeline}"


def accuracy(
    subjects: Subjects,
    out: Path,
    checkpoints: str | Sequence[str] | None,
    models: str | Sequence[str] | None,
    weights: str | Sequence[str] | None,
    pipeline: str,
) -> float:
    """Measures checkpoints and models of timm; returns top-1 of the first.

    Writes `accuracy.json`, a row for each model and pipeline; `differences.json`, of each model to the first on the
    same images and of the pipelines; and for each row the records of its images (.npz) and its classes (.csv). What a
    run's last checkpoint scores by the exact pipeline on other data than the run's own is kept beside the run's result
    too, for the tables (`infvit.compare`).

    Args:
        checkpoints: of runs.
        models: names of timm.
        weights: a file for each of `models`; None for the published ones.
        pipeline: a key of `PIPELINES`.
    """
    if pipeline not in PIPELINES:
        raise UsageError(f"pipeline={pipeline} is none: expected one of {', '.join(PIPELINES)}")
    measured = _subjects(subjects, _listed(checkpoints), _listed(models), _listed(weights))
    for subject in measured:
        for name in PIPELINES[pipeline]:
            subject.readers[name]()  # what is missing is told before anything is measured
    evaluations = []
    for label, subject in zip(_labels(measured), measured, strict=True):
        zero = subject.trainer.is_global_zero
        if zero:
            print(f"{label}: {subject.row['ckpt'] or subject.row['weights']}\n  {subject.row['view']}", flush=True)
        for name in PIPELINES[pipeline]:
            data = subject.data.tested_by(subject.readers[name]())
            records = record(subject.net, data, subject.trainer, label)
            evaluation = _Evaluation(label, name, subject, records)
            evaluations.append(evaluation)
            if zero:
                records.write(out / f"{evaluation.file}.npz")
                on = f"{label} on {subject.row['data']}, {len(records):,} images, {name} pipeline:"
                print(f"{on} top-1 {100 * records.correct.mean():.2f}%", flush=True)
    if evaluations[0].subject.trainer.is_global_zero:
        _report(evaluations, out)
    return float(evaluations[0].records.correct.mean())


def _listed(value: str | Sequence[str] | None) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


def _subjects(subjects: Subjects, checkpoints: list[str], models: list[str], weights: list[str]) -> list[Trained]:
    if not checkpoints and not models:
        raise UsageError(
            "nothing to evaluate: give ckpt=RUN/checkpoints/last.ckpt, or model=timm model.name=NAME data=imagenet"
        )
    if weights and len(weights) != len(models):
        raise UsageError(
            f"weights= names {len(weights)} files and model.name= {len(models)} models of timm: give one for each"
        )
    files: list[str | None] = [*weights] or [None] * len(models)
    measured = [subjects.trained(checkpoint) for checkpoint in checkpoints]
    return measured + [subjects.pretrained(name, file) for name, file in zip(models, files, strict=True)]


def _labels(measured: list[Trained]) -> list[str]:
    """A name for each that no other has: the model's, or with its run's folder, its checkpoint's or its number."""
    names = [str(subject.row["model"]) for subject in measured]
    runs = [subject.run_dir.name if subject.run_dir else name for subject, name in zip(measured, names, strict=True)]
    files = [
        f"{run}/{Path(subject.row['ckpt'] or subject.row['weights']).stem}"
        for subject, run in zip(measured, runs, strict=True)
    ]
    numbered = [f"{name}#{i}" for i, name in enumerate(names, 1)]
    return next(labels for labels in (names, runs, files, numbered) if len(set(labels)) == len(labels))


def _report(evaluations: list[_Evaluation], out: Path) -> None:
    rows, classes, notes = [], [], []
    for one in evaluations:
        subject, names = one.subject, one.subject.data.classes
        real = Real.of(one.records, subject.data.paths, names)
        found, of_classes = scores(one.records, real)
        row = {"name": one.label} | subject.row | {"pipeline": one.pipeline, "images": len(one.records)}
        for name in ("top1", "top5", "loss", "ece", "real_top1", "real_top5"):
            ends = found.get(name, (None, None, None))
            row |= dict(zip((name, f"{name}_low", f"{name}_high"), ends, strict=True))
        row["real_images"] = int(real.labelled.sum()) if real else None
        rows.append(row)
        if one.pipeline == evaluations[0].pipeline:
            classes.append(table.best_and_worst(f"{one.label}, {one.pipeline}", names, of_classes))
        table.write_classes(out / f"{one.file}.classes.csv", names, of_classes)
        notes.append(table.about_real(row, names))
        if subject.run_dir and one.pipeline == "exact":
            notes.append(_kept(subject.run_dir, row, subject.last))
    differences = _differences(evaluations)
    how = {"resamples": bootstrap.RESAMPLES, "seed": bootstrap.SEED, "calibration_bins": BINS}
    (out / "accuracy.json").write_text(json.dumps({"rows": rows} | how, indent=2) + "\n")
    print("", table.scores(rows), "", sep="\n")
    if differences:
        (out / "differences.json").write_text(json.dumps({"rows": differences} | how, indent=2) + "\n")
        print(table.differences(differences), "", sep="\n")
    if "ffcv" in {row["pipeline"] for row in rows}:
        notes.append("ffcv resizes with OpenCV's area filter: report the numbers of exact.")
    if len({row["fingerprint"] for row in rows}) > 1:
        notes.append("Models measured on different images have no differences: data= gives all of them the same.")
    print(*classes, "", bootstrap.HOW, f"ECE: calibration error of the softmax, {BINS} bins.", sep="\n")
    print(*dict.fromkeys(filter(None, notes)), out / "accuracy.json", sep="\n")


def _kept(run_dir: Path, row: dict[str, Any], last: bool) -> str:
    """Keeps the row for the tables of runs, if it is of the run's last checkpoint; says where, or why not."""
    if not last:
        return f"{row['ckpt']} is not its run's last checkpoint: no column of the run's table"
    kept = keep(run_dir, row)
    return f"{kept}: a column of the run's table, by python -m infvit.compare" if kept else ""


def _differences(evaluations: list[_Evaluation]) -> list[dict[str, Any]]:
    """Of every model to the first by one pipeline, and of the second pipeline to the first by one model."""
    rows = []
    for one, other in combinations(evaluations, 2):
        models = one.pipeline == other.pipeline and one.label == evaluations[0].label
        same = one.subject.row["fingerprint"] == other.subject.row["fingerprint"]
        if same and (models or one.label == other.label):
            top1, differing = difference(other.records, one.records)
            row: dict[str, Any] = {"name": other.label, "pipeline": other.pipeline}
            row |= {"minus": one.label, "minus_pipeline": one.pipeline}
            row |= {"images": len(one.records), "differing": differing}
            rows.append(row | dict(zip(("top1", "top1_low", "top1_high"), top1, strict=True)))
    return rows
