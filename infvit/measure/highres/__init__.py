"""The ways of running one model on images of growing size: time, memory, and whether they agree."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from torch import Tensor

from infvit.errors import UsageError
from infvit.highres import band, open_image
from infvit.highres.images import write_test_image
from infvit.measure.highres.case import Make, run
from infvit.measure.highres.table import plot, table
from infvit.measure.model_source import ModelSource
from infvit.measure.subprocess_case import DONE, Outcome, alone
from infvit.run.environment import command, hardware, versions
from infvit.run.files import atomic_write
from infvit.vit import VisionTransformer

WAYS = ("dense", "chunked", "streamed", "parallel", "training", "training_dense")


@dataclass(frozen=True)
class Row:
    """One case. Bytes; None where it has no figure.

    Attributes:
        seconds: opening and reading the image included.
        peak: largest resident memory of a process of the case, libraries and weights included.
        resident: what libraries and weights take of it.
        difference: largest difference of its logits to those of the first way that finished at this size, over the
            largest logit; None for that way itself, and in training, whose stochastic depth draws others.
    """

    model: str
    way: str
    height: int
    width: int
    tokens: int
    status: str
    note: str
    seconds: float | None = None
    peak: int | None = None
    resident: int | None = None
    communicated: int | None = None
    difference: float | None = None


def highres(
    source: ModelSource,
    out: Path,
    models: Sequence[str],
    checkpoint: str | None,
    resolution: int | Sequence[int],
    image: str | None,
    ways: Sequence[str],
    chunk: int,
    processes: int,
    time_limit: float,
    memory_limit: float | None,
) -> float | None:
    """Runs every model in every way at every resolution; writes highres.json, .md and .png and prints the table.

    Returns the seconds of the last case, None if it did not finish.

    Raises:
        UsageError: for an unknown way, or a size that does not fit, before anything runs.
    """
    for way in ways:
        if way not in WAYS:
            raise UsageError(f"ways={way} is unknown: expected some of {', '.join(WAYS)}")
    sides = [(side, side) for side in ([resolution] if isinstance(resolution, int) else resolution)]
    if image:
        opened = open_image(image, allow_huge=True)
        sides = [(opened.height, opened.width)]
    limit = None if memory_limit is None else int(memory_limit * 1e9)
    with tempfile.TemporaryDirectory() as folder:
        makes = _makes(source, models, checkpoint, Path(folder))
        tokens = [_tokens(makes, side, processes if "parallel" in ways else 1) for side in sides]
        rows: list[Row] = []
        for (height, width), count in zip(sides, tokens, strict=True):
            path = Path(image) if image else Path(folder) / f"{height}.tif"
            if not image:
                write_test_image(path, height, width)
            for model, make in makes.items():
                reference: Tensor | None = None
                for way in ways:
                    print(f"{model}, {way}, {height} × {width}, {count:,} tokens: ", end="", flush=True)
                    outcome = alone(partial(run, make, way, path, chunk, processes), time_limit, limit)
                    row = Row(model, way, height, width, count, outcome.status, outcome.note)
                    row, reference = _measured(row, outcome, reference)
                    rows.append(row)
                    print(_told(row), flush=True)
                    _write(out, rows, {"chunk": chunk, "processes": processes, "image": image})
            if not image:
                path.unlink()
    print(f"\n{table(rows)}\n\n{out / 'highres.json'}")
    return rows[-1].seconds


def _makes(source: ModelSource, models: Sequence[str], checkpoint: str | None, folder: Path) -> dict[str, Make]:
    """Makers of the models, by name, for other processes; a trained one goes through its saved weights."""
    if checkpoint is None:
        return {model: source.untrained(model) for model in models}
    model = source.load(checkpoint).model
    if not isinstance(model, VisionTransformer):
        raise UsageError(f"ckpt={checkpoint} is a {type(model).__name__}, expected a VisionTransformer of infvit")
    model.save_pretrained(folder / "model")
    return {checkpoint: partial(VisionTransformer.from_pretrained, folder / "model")}


def _tokens(makes: dict[str, Make], side: tuple[int, int], processes: int) -> int:
    """Patches of an image of that size, which must fit every model."""
    counts = []
    for name, make in makes.items():
        model = make()
        if not isinstance(model, VisionTransformer):
            raise UsageError(f"model {name} is a {type(model).__name__}, expected a VisionTransformer of infvit")
        rows, columns = model.grid(*side)
        band(side[0], model.patch_size, 0, processes)
        counts.append(rows * columns)
    return counts[0]


def _measured(row: Row, outcome: Outcome, reference: Tensor | None) -> tuple[Row, Tensor | None]:
    """The row with its figures, and the logits that later ways are compared with."""
    if outcome.status != DONE:
        return row, reference
    found = outcome.value
    difference = None
    inference = not row.way.startswith("training")
    if inference and reference is not None:
        difference = float((found.logits - reference).abs().max() / reference.abs().max())
    figures = {
        "seconds": found.seconds,
        "peak": found.peak,
        "resident": found.resident,
        "communicated": found.communicated or None,
        "difference": difference,
    }
    return Row(**(asdict(row) | figures)), found.logits if inference and reference is None else reference


def _told(row: Row) -> str:
    if row.seconds is None or row.peak is None:
        return row.status
    sent = "" if row.communicated is None else f", {row.communicated:,} bytes all-reduced by each process"
    return f"{row.seconds:,.1f} s, {row.peak / 1e9:.2f} GB{sent}"


def _write(out: Path, rows: Sequence[Row], options: dict[str, object]) -> None:
    """After every case, so that a long measurement that is stopped leaves what it has."""
    about = {"command": command(), "hardware": hardware(), "versions": versions(), **options}
    atomic_write(out / "highres.json", json.dumps(about | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    (out / "highres.md").write_text(table(rows) + "\n")
    picture = plot(rows)
    if picture is not None:
        (out / "highres.png").write_bytes(picture)
