"""`eval=highres`: time, memory and agreement of the ways of running one model on images of growing size."""

import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

from torch import Tensor

from infvit.errors import UsageError, expect
from infvit.highres import band, open_image
from infvit.highres.images import write_test_image
from infvit.measure.highres.case import WAYS, CaseResult, HighresRow, MakeModel, run
from infvit.measure.highres.table import plot, table
from infvit.measure.model_source import ModelSource
from infvit.measure.subprocess_case import DONE, run_isolated
from infvit.run.environment import command, hardware, versions
from infvit.run.files import atomic_write
from infvit.vit import VisionTransformer


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
    """Runs every model in every way at every resolution; prints the table, writes highres.json, .md and .png.

    Args:
        models: names in conf/model; without effect if there is a checkpoint.
        checkpoint: of a run, whose model is measured.
        resolution: sides of square test images in pixels.
        image: a file to use instead of the test images, at its own size.
        ways: some of `WAYS`.
        chunk: tokens at a time.
        processes: of way "parallel".
        time_limit: seconds for a case.
        memory_limit: GB for a process; None for nine tenths of what is free.

    Returns:
        The seconds of the last case, None if it did not finish.

    Raises:
        UsageError: before anything runs, for an unknown way or a size that does not fit a model.
    """
    for way in ways:
        expect(way in WAYS, f"ways={way} is unknown", f"some of {', '.join(WAYS)}")
    sides = [(side, side) for side in ([resolution] if isinstance(resolution, int) else resolution)]
    if image:
        opened = open_image(image, allow_huge=True)
        sides = [(opened.height, opened.width)]
    limit = None if memory_limit is None else int(memory_limit * 1e9)
    options: dict[str, object] = {"chunk": chunk, "processes": processes, "image": image}
    rows: list[HighresRow] = []
    with tempfile.TemporaryDirectory() as folder:
        makers = _makers(source, models, checkpoint, Path(folder))
        tokens = [_tokens(makers, side, processes if "parallel" in ways else 1) for side in sides]
        for (height, width), count in zip(sides, tokens, strict=True):
            path = Path(image) if image else Path(folder) / f"{height}.tif"
            if not image:
                write_test_image(path, height, width)
            for model, make in makers.items():
                reference: Tensor | None = None
                for way in ways:
                    print(f"{model}, {way}, {height} × {width}, {count:,} tokens: ", end="", flush=True)
                    outcome = run_isolated(partial(run, make, way, path, chunk, processes), time_limit, limit)
                    row = HighresRow(model, way, height, width, count, outcome.status, outcome.note)
                    if outcome.status == DONE:
                        reference = _add_figures(row, outcome.value, reference)
                    rows.append(row)
                    print(_summary(row), flush=True)
                    _write(out, rows, options)  # after each, so that an interrupted measurement leaves what it has
            if not image:
                path.unlink()
    print(f"\n{table(rows)}\n\n{out / 'highres.json'}")
    return rows[-1].seconds


def _makers(source: ModelSource, models: Sequence[str], checkpoint: str | None, folder: Path) -> dict[str, MakeModel]:
    """Constructors of the models for other processes, by name; a trained one is saved to `folder` and read there."""
    if checkpoint is None:
        return {model: source.untrained(model) for model in models}
    model = source.load(checkpoint).model
    if not isinstance(model, VisionTransformer):
        raise UsageError(f"ckpt={checkpoint} is a {type(model).__name__}, expected a VisionTransformer of infvit")
    model.save_pretrained(folder / "model")
    return {checkpoint: partial(VisionTransformer.from_pretrained, folder / "model")}


def _tokens(makers: dict[str, MakeModel], side: tuple[int, int], processes: int) -> int:
    """Number of patches of an image of that size; UsageError if it does not fit every model."""
    counts = []
    for name, make in makers.items():
        model = make()
        if not isinstance(model, VisionTransformer):
            raise UsageError(f"model {name} is a {type(model).__name__}, expected a VisionTransformer of infvit")
        rows, columns = model.grid(*side)
        band(side[0], model.patch_size, 0, processes)
        counts.append(rows * columns)
    return counts[0]


def _add_figures(row: HighresRow, found: CaseResult, reference: Tensor | None) -> Tensor | None:
    """Sets the row's figures; returns the logits that later ways are compared with."""
    for name in ("seconds", "peak", "resident", "communicated"):
        setattr(row, name, getattr(found, name))
    if row.way.startswith("training"):
        return reference
    if reference is None:
        return found.logits
    row.difference = float((found.logits - reference).abs().max() / reference.abs().max())
    return reference


def _summary(row: HighresRow) -> str:
    if row.seconds is None or row.peak is None:
        return row.status
    sent = "" if row.communicated is None else f", {row.communicated:,} bytes all-reduced by each process"
    return f"{row.seconds:,.1f} s, {row.peak / 1e9:.2f} GB{sent}"


def _write(out: Path, rows: Sequence[HighresRow], options: dict[str, object]) -> None:
    about = {"command": command(), "hardware": hardware(), "versions": versions(), **options}
    atomic_write(out / "highres.json", json.dumps(about | {"rows": [asdict(row) for row in rows]}, indent=2) + "\n")
    (out / "highres.md").write_text(table(rows) + "\n")
    picture = plot(rows)
    if picture is not None:
        (out / "highres.png").write_bytes(picture)
