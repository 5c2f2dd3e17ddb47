"""Top-1, top-5 and loss of a trained model by the exact pipeline."""

import json
from pathlib import Path

from infvit.measure.subjects import Subjects


def accuracy(subjects: Subjects, out: Path, checkpoint: str) -> float:
    """Measures a checkpoint, writes `accuracy.json` and prints it; returns top-1."""
    module, data, trainer, row = subjects.trained(checkpoint)
    trainer.test(module, datamodule=data, verbose=False)

    metrics = {name.removeprefix("test/"): float(value) for name, value in trainer.callback_metrics.items()}
    (out / "accuracy.json").write_text(json.dumps(row | metrics, indent=2) + "\n")
    print(f"{row['model']} on {row['data']}, {row['images']:,} images, exact pipeline:")
    print(
        f"top-1 {100 * metrics['top1']:.2f}%   top-5 {100 * metrics['top5']:.2f}%   loss {metrics['loss']:.4f}\n"
        f"{out / 'accuracy.json'}"
    )
    return metrics["top1"]
