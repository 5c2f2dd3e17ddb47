"""Top-1, top-5 and loss of a trained model by the exact pipeline."""

import json
from pathlib import Path

from infvit.compare.evaluation import keep
from infvit.measure.subjects import Subjects


def accuracy(subjects: Subjects, out: Path, checkpoint: str) -> float:
    """Measures a checkpoint, writes `accuracy.json` and prints it; returns top-1.

    On other data than the run's own it is kept beside the run's result too, for the tables (`infvit.compare`).
    """
    module, data, trainer, row, run_dir = subjects.trained(checkpoint)
    trainer.test(module, datamodule=data, verbose=False)

    metrics = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    (out / "accuracy.json").write_text(json.dumps(row | metrics, indent=2) + "\n")
    print(f"{row['model']} on {row['data']}, {row['images']:,} images, exact pipeline:")
    print(
        f"top-1 {100 * metrics['top1']:.2f}%   top-5 {100 * metrics['top5']:.2f}%   loss {metrics['loss']:.4f}\n"
        f"{out / 'accuracy.json'}"
    )
    kept = keep(run_dir, row | metrics)
    if kept is not None:
        print(f"{kept}: a column of the run's table, by python -m infvit.compare")
    return metrics["top1"]
