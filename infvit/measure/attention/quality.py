"""Measures the maps and layers of trained models: removal of patches, boxes, statistics of heads and outputs."""

import glob
import json
import math
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from infvit.compare.evaluation import MAP_FIGURES, keep_maps
from infvit.compare.grouping import best_known, group, names_of, shared_overrides
from infvit.errors import UsageError
from infvit.measure.attention.boxes import AnnotatedBoxes, InkBoxes
from infvit.measure.attention.gallery import write_gallery
from infvit.measure.attention.gallery_input import GalleryInput, normalised, numbered
from infvit.measure.attention.health import Health, health
from infvit.measure.attention.localisation import THRESHOLDS, localisation
from infvit.measure.attention.maps import offered, token_map
from infvit.measure.attention.options import Options
from infvit.measure.attention.outputs import Outputs, outputs
from infvit.measure.attention.patch_removal import REMOVALS, faithfulness, remover
from infvit.measure.attention.quality_plots import write_curves, write_ranks
from infvit.measure.attention.quality_rows import Rows, curve_rows, layer_rows, map_row
from infvit.measure.attention.quality_table import explained, layer_tables, map_tables
from infvit.measure.model_source import LoadedRun, ModelSource, labelled
from infvit.run.environment import command
from infvit.run.files import atomic_write
from infvit.run.result import RESULT_FILE, Result

IN_GALLERY = 8
OWN = "attention"
"""The method that every model with weights supports."""

MAPS, CURVES, LAYERS = "attention", "attention_curves", "attention_layers"
"""The files of rows: of methods, of the points of their curves, and of blocks and heads."""


class Measured(NamedTuple):
    """One run: the rows of each file, the source of boxes ("" without any), and notes."""

    run: Result
    rows: dict[str, Rows]
    boxes: str
    notes: list[str]


def attention(source: ModelSource, out: Path, checkpoints: str | Sequence[str], options: Options) -> float:
    """Measures maps and layers of trained models; writes attention.json and .md, curves, layers, and a gallery.

    Several seeds of one configuration give a mean with its interval; a single seed has the interval over its images. Of
    an attention without weights of tokens the outputs are measured alone.

    Returns:
        The MoRF-AOC of the first method of the first run that has maps, a fraction; NaN without any.

    Raises:
        UsageError: for a method or block that a model does not have, a missing checkpoint, or invalid boxes.
    """
    paths = _paths(checkpoints)
    measured: list[Measured] = []
    kept: list[Path] = []
    in_gallery: dict[tuple[Any, ...], LoadedRun] = {}
    for i, path in enumerate(paths):
        studied = source.load(path)
        assert studied.run_dir is not None
        run = Result.read(studied.run_dir / RESULT_FILE)
        if any(m.run.config_key == run.config_key and m.run.seed == run.seed for m in measured):
            raise UsageError(f"ckpt={path} repeats seed {run.seed} of {run.model}: give each seed once")
        label = f"{i + 1}/{len(paths)} {run.model} seed {run.seed}"
        measured.append(_measured(run, studied, source.initial(path), options, label, len(paths) == 1))
        if measured[-1].rows[MAPS]:
            in_gallery.setdefault(run.config_key, studied)
        shown = _write(out, measured, options)
        kept += _keep(studied, measured[-1], options)
    print(f"\n{shown}\n\n{out / 'attention.json'}\n{_gallery(out, list(in_gallery.values()), options)}")
    if kept:
        print(f"kept in {len(kept)} run folders, as columns of python -m infvit.compare RUN_DIRS")
    return next((float(row["morf_aoc"]) for m in measured for row in m.rows[MAPS]), math.nan)


def _paths(checkpoints: str | Sequence[str]) -> list[str]:
    """Expands patterns to files; other names are kept, for the checkpoint reader to report if missing."""
    given = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    paths = [path for name in given for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    if not paths:
        raise UsageError(
            f"ckpt={', '.join(given)} matches no file: give .ckpt files, such as RUN/*/checkpoints/last.ckpt"
        )
    return list(dict.fromkeys(paths))


def _measured(
    run: Result, studied: LoadedRun, initial: nn.Module, options: Options, label: str, only: bool
) -> Measured:
    weighs = OWN in offered(studied.model)
    methods, notes = _methods(studied, options, only) if weighs else ([], [])
    boxes = _boxes(studied, options) if weighs else None
    data, device, at = studied.data, options.device, options.at
    model, start = studied.model.to(device), initial.to(device)
    parts: dict[str, dict[str, list[Tensor]]] = {method: defaultdict(list) for method in methods}
    healths: dict[str, list[Health]] = {"start": [], "trained": []}
    of_blocks: dict[str, list[Outputs]] = {"start": [], "trained": []}
    total = min(options.images or data.val_size, data.val_size)
    with (
        warnings.catch_warnings(record=True) as caught,
        tqdm(total=total, desc=label[:32], unit="image", ncols=79, leave=False, disable=None) as bar,
    ):
        for images, labels, places in data.exact(options.images, options.batch_size):
            pixels = normalised(studied, images)
            remove = None
            if boxes is not None:
                inside = boxes(images, places).to(device)
                boxed = inside.flatten(1).any(1) & ~inside.flatten(1).all(1)
            for method in methods:
                maps = token_map(model, pixels, method, options.block)
                remove = remove or remover(options.removal, model, pixels, (maps.shape[-2], maps.shape[-1]))
                found = faithfulness(remove, maps, labels.to(device), at)._asdict()
                found["zero"] = (maps == 0).flatten(1).all(1)
                if boxes is not None and boxed.any():
                    thresholds = (*THRESHOLDS, options.threshold)
                    found |= localisation(maps[boxed], inside[boxed], thresholds, options.upsampling)._asdict()
                for name, values in found.items():
                    parts[method][name].append(values)
            for when, net in (("start", start), ("trained", model)):
                of_blocks[when].append(outputs(net, pixels))
                if weighs:
                    healths[when].append(health(net, pixels))
            bar.update(len(images))
    shown = ", ".join(methods) or "no maps: its attention has no weights of tokens"
    print(f"{label}: {total:,} images, {shown}"[:79], flush=True)
    first: dict[str, Any] = {"ckpt": studied.checkpoint, "model": run.model, "variant": run.variant, "seed": run.seed}
    first |= {"data": data.name, "fingerprint": data.fingerprint, "images": total}
    rows: dict[str, Rows] = {MAPS: [], CURVES: []}
    for method, of_method in parts.items():
        scores = {name: torch.cat(values) for name, values in of_method.items()}
        rows[MAPS].append(first | {"method": method} | map_row(scores, at))
        rows[CURVES] += [first | {"method": method} | row for row in curve_rows(scores, at)]
    first |= {"top1": run.metrics.get("test/top1")}
    rows[LAYERS] = [
        first | {"when": when} | row for when, found in healths.items() for row in layer_rows(found, of_blocks[when])
    ]
    notes += [f"{row['method']}: {row['zero_maps']:,} maps of zeros" for row in rows[MAPS] if row["zero_maps"]]
    notes += dict.fromkeys(str(warning.message) for warning in caught)  # once, not for every batch
    if boxes is None:
        notes += ["no localisation: boxes=DIR names the folder of ImageNet's XML annotations"] * weighs
        return Measured(run, rows, "", notes)
    boxed_images = rows[MAPS][0]["boxed_images"]
    if not boxed_images:
        raise UsageError(f"boxes={options.boxes}: no image has pixels in a box and others outside")
    if boxed_images < total:
        left_out = total - boxed_images
        notes.append(f"{left_out:,} images left out of localisation: nothing or everything is in a box")
    return Measured(run, rows, boxes.name, [*notes, *boxes.notes()])


def _keep(studied: LoadedRun, found: Measured, options: Options) -> list[Path]:
    """Stores the figures of the `attention` maps in the run folder, if all images were measured."""
    own = [row for row in found.rows[MAPS] if row["method"] == OWN]
    if not own or options.images is not None:
        return []
    if not studied.is_last:
        print(f"{studied.checkpoint} is not its run's last checkpoint: no columns of the run's table", flush=True)
        return []
    how = f"block {options.block}, patches {REMOVALS[options.removal]} in steps of {options.step:.0%}"
    if found.boxes:
        how += f", against {found.boxes} boxes ({options.upsampling})"
    assert studied.run_dir is not None
    figures = {name: own[0][name] for name in MAP_FIGURES}
    path = keep_maps(studied.run_dir, figures, studied.data.fingerprint, how)
    return [] if path is None else [path]


def _gallery(out: Path, studied: Sequence[LoadedRun], options: Options) -> str:
    """Writes gallery.html with one seed of each configuration; returns its path, or the reason why not."""
    if not studied:
        return "no gallery: no model has maps"
    images = studied[0].data.examples(IN_GALLERY)
    alike = [one for one in studied if torch.equal(one.data.examples(IN_GALLERY), images)]
    try:
        shown = GalleryInput(labelled(alike), images, numbered(images))
        return str(write_gallery(out / "gallery.html", shown, options.methods))
    except UsageError as error:
        return f"no gallery: {error}"


def _methods(studied: LoadedRun, options: Options, only: bool) -> tuple[list[str], list[str]]:
    """The methods to measure, and a note about requested ones that this model does not support."""
    there = offered(studied.model)
    asked = list(there if options.methods is None else dict.fromkeys(options.methods))
    absent = [method for method in asked if method not in there]
    line = f"{', '.join(absent)} not offered: it offers {', '.join(there)}"
    if absent and (only or len(absent) == len(asked)):
        raise UsageError(f"methods={line.replace('it offers', studied.name + ' offers')}")
    return [method for method in asked if method in there], [line] if absent else []


def _boxes(studied: LoadedRun, options: Options) -> InkBoxes | AnnotatedBoxes | None:
    data = studied.data
    if options.boxes == "ink" or (options.boxes is None and not data.paths):
        return InkBoxes()
    if options.boxes is None:
        return None
    if not data.paths:
        raise UsageError(f"boxes={options.boxes}: the images of {data.name} are not files: use boxes=ink")
    return AnnotatedBoxes(options.boxes, data)


def _write(out: Path, measured: Sequence[Measured], options: Options) -> str:
    """Writes all measurements so far; returns the tables as text for a terminal."""
    groups = group(m.run for m in measured)
    configs = [best_known(runs) for runs in groups]
    names = names_of(configs, shared_overrides(configs))
    name_of = {id(run): name for name, runs in zip(names, groups, strict=True) for run in runs}
    rows = {
        stem: [{"name": name_of[id(m.run)]} | row for m in measured for row in m.rows[stem]]
        for stem in (MAPS, CURVES, LAYERS)
    }
    for stem, of_file in rows.items():
        content = asdict(options) | {"command": command(), "rows": of_file}
        atomic_write(out / f"{stem}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    boxes = " and ".join(dict.fromkeys(m.boxes for m in measured if m.boxes))
    write_curves(rows[CURVES], REMOVALS[options.removal], out / "attention_curves.png")
    write_ranks(rows[LAYERS], out / "attention_rank.png")
    shown = [*map_tables(rows[MAPS], options, boxes), *layer_tables(rows[LAYERS])]
    notes = [explained(options, [m.run for m in measured]), *_notes(measured)]
    atomic_write(out / "attention.md", "\n\n".join([*(table.markdown() for table in shown), *notes]) + "\n")
    return "\n\n".join([*(table.text() for table in shown), *("\n".join(textwrap.wrap(note, 79)) for note in notes)])


def _notes(measured: Sequence[Measured]) -> list[str]:
    """The notes of all runs, each once, prefixed by its runs unless it concerns all."""
    found: dict[str, list[str]] = defaultdict(list)
    for m in measured:
        for note in m.notes:
            found[note].append(f"{m.run.model} seed {m.run.seed}")
    return [note if len(runs) == len(measured) else f"{', '.join(runs)}: {note}" for note, runs in found.items()]
