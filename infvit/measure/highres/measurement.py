"""`eval=highres`: time, memory and agreement of the ways of running one model on images of growing size."""

import json
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from infvit.errors import UsageError, expect
from infvit.highres import band, open_image
from infvit.highres.images import write_test_image
from infvit.highres.stages import runs_in_pieces
from infvit.measure.highres.case import MakeModel, Way, run
from infvit.measure.highres.table import Row, plot, table
from infvit.measure.model_source import ModelSource
from infvit.measure.subprocess_case import run_isolated
from infvit.run.environment import command, hardware, versions
from infvit.run.files import atomic_write
from infvit.vit import VisionTransformer

FIGURES = ("seconds", "peak", "resident", "communicated")
"""Fields of `CaseResult` that a row has; None if the case did not finish."""


def highres(
    source: ModelSource,
    out: Path,
    models: Sequence[str],
    checkpoint: str | None,
    resolution: int | Sequence[int],
    image: str | None,
    ways: Sequence[Way],
    chunk: int,
    processes: int,
    time_limit: float,
    memory_limit: float | None,
) -> float | None:
    """Runs every model in every way at every resolution; prints the table, writes highres.json, .md and .png.

    conf/eval/highres.yaml explains the arguments. A row's `difference` is the largest one of the logits to those of the
    first way that finished at this size, over the largest logit; None for that way itself, and in training, whose
    stochastic depth draws differ.

    Returns:
        The seconds of the last case, None if it did not finish.

    Raises:
        UsageError: before anything runs, for a size that does not fit a model, or if no model supports a way.
    """
    sides = [(side, side) for side in ([resolution] if isinstance(resolution, int) else resolution)]
    if image:
        opened = open_image(image, allow_huge=True)
        sides = [(opened.height, opened.width)]
    limit = None if memory_limit is None else int(memory_limit * 1e9)
    options: dict[str, object] = {"chunk": chunk, "processes": processes, "image": image}
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        makers = _makers(source, models, checkpoint, Path(folder))
        supported = _supported(makers, ways)
        tokens = [_tokens(makers, side, processes if "parallel" in ways else 1) for side in sides]
        for (height, width), count in zip(sides, tokens, strict=True):
            path = Path(image) if image else Path(folder) / f"{height}.tif"
            if not image:
                write_test_image(path, height, width)
            for model, make in makers.items():
                reference: Tensor | None = None
                for way in supported[model]:
                    print(f"{model}, {way}, {height} × {width}, {count:,} tokens: ", end="", flush=True)
                    outcome = run_isolated(partial(run, make, way, path, chunk, processes), time_limit, limit)
                    row: Row = {"model": model, "way": way, "height": height, "width": width, "tokens": count}
                    row |= {"status": outcome.status, "note": outcome.note}
                    row |= {name: getattr(outcome.value, name, None) for name in FIGURES}
                    logits = None if way.startswith("training") else getattr(outcome.value, "logits", None)
                    row["difference"] = _difference(logits, reference)
                    reference = logits if reference is None else reference
                    rows.append(row)
                    print(_summary(row), flush=True)
                    _write(out, rows, options)  # after each, so that an interrupted measurement leaves what it has
            if not image:
                path.unlink()
    print(f"\n{table(rows)}\n\n{out / 'highres.json'}")
    return rows[-1]["seconds"]


def _makers(source: ModelSource, models: Sequence[str], checkpoint: str | None, folder: Path) -> dict[str, MakeModel]:
    """Constructors of the models for other processes, by name; a trained one is saved to `folder` and read there."""
    if checkpoint is None:
        return {model: source.untrained(model) for model in models}
    model = source.load(checkpoint).model
    if not isinstance(model, VisionTransformer):
        raise UsageError(f"ckpt={checkpoint} is a {type(model).__name__}, expected a VisionTransformer of infvit")
    torch.save(model, folder / "model.pt")  # with its class, which save_pretrained takes only if it has a name
    return {checkpoint: partial(torch.load, folder / "model.pt", weights_only=False)}


def _supported(makers: dict[str, MakeModel], ways: Sequence[Way]) -> dict[str, list[Way]]:
    """The ways of each model; a line names those left out, where tokens do not interact through sums alone."""
    found: dict[str, list[Way]] = {}
    for name, make in makers.items():
        pieces = runs_in_pieces(make())
        found[name] = [way for way in ways if pieces or way.endswith("dense")]
        if absent := [way for way in ways if way not in found[name]]:
            print(f"{name}: its attention does not run {', '.join(absent)}: left out", flush=True)
    line = f"ways=[{','.join(ways)}] {'is' if len(ways) == 1 else 'are'} for models such as linear_infvit alone"
    expect(any(found.values()), line, "ways=[dense], or another model")
    return found


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


def _difference(logits: Tensor | None, reference: Tensor | None) -> float | None:
    """The largest difference of the logits over the largest logit; None without both."""
    if logits is None or reference is None:
        return None
    return float((logits - reference).abs().max() / reference.abs().max())


def _summary(row: Row) -> str:
    if row["seconds"] is None:
        return row["status"]
    sent = "" if row["communicated"] is None else f", {row['communicated']:,} bytes all-reduced by each process"
    return f"{row['seconds']:,.1f} s, {row['peak'] / 1e9:.2f} GB{sent}"


def _write(out: Path, rows: list[Row], options: dict[str, object]) -> None:
    about = {"command": command(), "hardware": hardware(), "versions": versions(), **options}
    atomic_write(out / "highres.json", json.dumps(about | {"rows": rows}, indent=2) + "\n")
    (out / "highres.md").write_text(table(rows) + "\n", encoding="utf-8")
    picture = plot(rows)
    if picture is not None:
        (out / "highres.png").write_bytes(picture)
