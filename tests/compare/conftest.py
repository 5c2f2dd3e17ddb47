"""Synthetic results: a run of any configuration and seed, as `train.py` would have left it."""

import html
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from infvit.compare import Comparison, to_html, to_latex, to_markdown, to_text, write_comparison
from infvit.run.result import Result

Printed = Callable[[Comparison], str]
FORMATS: dict[str, Printed] = {
    "text": lambda comparison: to_text(comparison, 300),
    "markdown": to_markdown,
    "latex": to_latex,
    "html": to_html,
}
MakeResult = Callable[..., Result]
MakeSweep = Callable[..., list[Path]]

IMAGENET = {"data": "imagenet", "depth": 4, "dim": 1024, "heads": 16, "patch": 16, "image_size": 224}
IMAGENET |= {"num_classes": 1000, "recipe": "deit", "epochs": 300}
"""What the published models have."""
EVIL = "<script>document.title='broken into'</script>"
COSTS = {"vit": (1.31e6, 84e6), "infvit": (1.30e6, 81e6), "linear_infvit": (1.05e6, 68e6)}


@pytest.fixture(params=FORMATS)
def printed(request: pytest.FixtureRequest) -> Printed:
    """Prints a comparison in one format, then undoes escapes and line breaks so that all formats read the same."""

    def read(comparison: Comparison) -> str:
        text = html.unescape(FORMATS[request.param](comparison).split("<script")[0])
        for escaped, char in (("\\allowbreak{}", ""), ("$\\pm$", "±"), ("\\textendash{}", "–"), ("\\", "")):
            text = text.replace(escaped, char)
        return " ".join(text.split())

    return read


@pytest.fixture(scope="session")
def make_result() -> MakeResult:
    """A finished run; `top1` None gives one that ended without a number, and any field may be named."""

    def make(model: str = "vit", seed: int = 0, top1: float | None = 0.9, **fields: Any) -> Result:
        noise = random.Random(f"{model}{seed}")
        epochs = fields.pop("epochs", 12)
        parameters, macs = COSTS.get(model, (1.2e6, 75e6))
        final = 0.5 if top1 is None else top1
        curves = [
            {
                "epoch": epoch,
                "train/loss": 2.3 * math.exp(-epoch / 4) + 0.2 + noise.uniform(0, 0.05),
                "val/loss": 2.3 * math.exp(-epoch / 4) + 0.3,
                "val/top1": final * (1 - math.exp(-(epoch + 1) / 3)) + noise.uniform(-0.01, 0.01),
                "lr": 1e-3 * (1 - epoch / epochs),
            }
            for epoch in range(epochs)
        ]
        attention = {"vit": "softmax", "infvit": "pure_infsa", "linear_infvit": "linear_infsa"}.get(model, model)
        given: dict[str, Any] = {"status": "finished", "model": model, "attention": attention, "seed": seed}
        given |= {"depth": 4, "dim": 192, "heads": 4, "patch": 2, "image_size": 8, "num_classes": 10}
        given |= {"parameters": int(parameters), "macs_forward": int(macs)}
        given |= {"flops_forward": int(2 * macs), "flops_training": int(6 * macs)}
        given |= {"recipe": "digits", "recipe_hash": "34cd90ab12ef5678", "epochs": epochs, "batch_size": 128}
        given |= {"data": "digits", "data_fingerprint": "9f3ac2d417b0", "loader": "ffcv", "precision": "32-true"}
        given |= {
            "metrics": {} if top1 is None else {"test/top1": top1, "test/top5": 0.5 + top1 / 2, "test/loss": 1 - top1},
            "curves": curves,
            "train_images_per_second": 1800 + noise.uniform(-60, 60),
            "hardware": {"cpu": "AMD EPYC 7B13", "cores": 2, "gpu": "none", "memory_gb": 24},
            "versions": {"python": "3.11.7", "torch": "2.14.1", "infvit": "0.1.0"},
            "git_commit": "0123abcd",
            "command": "python train.py -m experiment=digits model=vit,infvit,linear_infvit seed=0,1",
            "started": f"2025-11-24T02:0{seed % 10}:00+00:00",
            "seconds": 41.5 + seed,
            "run_dir": f"runs/digits/{model}-{seed}",
        }
        return Result(**(given | fields))

    return make


@pytest.fixture(scope="session")
def page_file(make_result: MakeResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a sweep on disk: three models comparable, one by another recipe, one deeper, one run failed."""
    sweep = tmp_path_factory.mktemp("sweep")
    accuracies = {"vit": 0.96, "infvit": 0.97, "linear_infvit": 0.95}
    results = [make_result(model, s, top1 + s / 100) for model, top1 in accuracies.items() for s in (0, 1)]
    results.append(make_result("vit", 2, None, status="failed", error=f"ValueError: {EVIL}"))
    results.append(make_result(EVIL, 0, 0.5, depth=24))
    results.append(make_result("vit", 0, 0.7, recipe="mine", recipe_hash="0" * 16))
    for folder, result in zip(write_results(sweep, results), results, strict=True):
        if result.model.endswith("infvit"):
            picture(folder)
    write_comparison([sweep], sweep)
    return sweep / "comparison.html"


def picture(folder: Path, size: int = 0) -> None:
    """A small real picture as a run leaves one, `size` bytes longer."""
    Image.new("RGB", (40, 20), "orange").save(folder / "attention.png")
    with (folder / "attention.png").open("ab") as file:
        file.write(b"\0" * size)


@pytest.fixture
def make_sweep(tmp_path: Path) -> MakeSweep:
    """Write results into a folder each, as the jobs of a sweep do; returns the folders."""

    return lambda results: write_results(tmp_path / "sweep", results)


def write_results(sweep: Path, results: list[Result]) -> list[Path]:
    """Write results into a folder each, below `sweep`; returns the folders."""
    folders = []
    for i, result in enumerate(results):
        folder = sweep / f"{i}_seed={result.seed}"
        folder.mkdir(parents=True)
        result.write(folder / "result.json")
        folders.append(folder)
    return folders
