"""Measures the maps and layers of trained models: removal of patches, boxes, statistics of heads."""

import glob
import json
import textwrap
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from tqdm import tqdm

from infvit.compare.evaluation import MAP_FIGURES, keep_maps
from infvit.compare.grouping import best_known, group, names_of, shared_overrides
from infvit.compare.published import published
from infvit.errors import UsageError
from infvit.measure.attention.boxes import AnnotatedBoxes, Boxes, InkBoxes
from infvit.measure.attention.gallery import write_gallery
from infvit.measure.attention.health import Health, health
from infvit.measure.attention.localisation import THRESHOLDS, Localisation, localisation
from infvit.measure.attention.maps import offered, token_map
from infvit.measure.attention.options import Options
from infvit.measure.attention.patch_removal import REMOVALS, Curves, Faithfulness, Remove, faithfulness, remover
from infvit.measure.attention.quality_plots import write_curves
from infvit.measure.attention.quality_rows import Rows, curve_rows, layer_rows, map_row
from infvit.measure.attention.quality_table import explained, layer_tables, map_tables
from infvit.measure.model_source import LoadedRun, ModelSource
from infvit.run.environment import command
from infvit.run.files import atomic_write
from infvit.run.result import RESULT_FILE, Result

IN_GALLERY = 8
"""Number of images in the gallery."""

OWN = "attention"
"""The method that every model with weights supports."""


class Measured(NamedTuple):
    """One run: rows of its maps, points of their curves, rows of its layers, the source of boxes, and notes."""

    run: Result
    maps: Rows
    curves: Rows
    layers: Rows
    boxes: str
    notes: list[str]


def attention(source: ModelSource, out: Path, checkpoints: str | Sequence[str], options: Options) -> float:
    """Measures maps and layers of trained models; writes attention.json and .md, curves, layers, and a gallery.

    Several seeds of one configuration give a mean with its interval; a single seed has the interval over its images.

    Returns:
        The MoRF-AOC of the first run's first method, a fraction.

    Raises:
        UsageError: for a method or block that a model does not have, a missing checkpoint, or invalid boxes.
    """
    paths = _paths(checkpoints)
    measured: list[Measured] = []
    kept: list[Path] = []
    shown_in_gallery: dict[tuple[Any, ...], LoadedRun] = {}
    for i, path in enumerate(paths):
        studied = source.load(path)
        assert studied.run_dir is not None
        run = Result.read(studied.run_dir / RESULT_FILE)
        if any(m.run.config_key == run.config_key and m.run.seed == run.seed for m in measured):
            raise UsageError(f"ckpt={path} repeats seed {run.seed} of {run.model}: give each seed once")
        label = f"{i + 1}/{len(paths)} {run.model} seed {run.seed}"
        if OWN not in offered(studied.model) and len(paths) > 1:
            print(f"{label}: its attention has no weights of tokens, left out", flush=True)
            continue
        found = _measured(run, studied, source.initial(path), options, label, len(paths) == 1)
        measured.append(found)
        shown_in_gallery.setdefault(run.config_key, studied)
        shown = _write(out, measured, options)
        kept += _keep(studied, found, options)
    if not measured:
        raise UsageError(f"ckpt={', '.join(paths)}: none of these models has an attention with weights of tokens")
    print(f"\n{shown}\n\n{out / 'attention.json'}\n{_gallery(out, list(shown_in_gallery.values()), options)}")
    if kept:
        print(f"kept in {len(kept)} run folders, as columns of python -m infvit.compare RUN_DIRS")
    return float(measured[0].maps[0]["morf_aoc"])


def _paths(checkpoints: str | Sequence[str]) -> list[str]:
    """Expands patterns to files; other names are kept, for the checkpoint reader to report if missing."""
    given = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    paths = [path for name in given for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    if not paths:
        raise UsageError(
            f"ckpt={', '.join(given)} matches no file: give .ckpt files, such as RUN/*/checkpoints/last.ckpt"
        )
    return list(dict.fromkeys(paths))


class _Batches:
    """Accumulates one model's measurements; `boxed` counts images with pixels inside and outside boxes."""

    def __init__(
        self, studied: LoadedRun, initial: nn.Module, options: Options, methods: Sequence[str], boxes: Boxes | None
    ) -> None:
        self.model, self.start = studied.model.to(options.device), initial.to(options.device)
        self.studied, self.options, self.methods, self.boxes = studied, options, methods, boxes
        self.removed: dict[str, list[Faithfulness]] = {method: [] for method in methods}
        self.located: dict[str, list[Localisation]] = {method: [] for method in methods}
        self.healths: dict[str, list[Health]] = {"start": [], "trained": []}
        self.zeros = dict.fromkeys(methods, 0)
        self.boxed, self.stalled = 0, False

    def add(self, images: Tensor, labels: Tensor, places: Tensor) -> None:
        """Adds a batch of `EvaluationData.exact`; turns a warning that every batch repeats into one note."""
        with warnings.catch_warnings(record=True) as caught:
            self._add(images, labels, places)
        for warning in caught:
            if str(warning.message).startswith("power iteration stopped"):
                self.stalled = True
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def _add(self, images: Tensor, labels: Tensor, places: Tensor) -> None:
        options, device = self.options, self.options.device
        pixels = self.studied.data.normalised(images.to(device))
        remove: Remove | None = None
        if self.boxes is not None:
            inside = self.boxes(images, places).to(device)
            boxed = inside.flatten(1).any(1) & ~inside.flatten(1).all(1)
            self.boxed += int(boxed.sum())
        for method in self.methods:
            maps = token_map(self.model, pixels, method, block=options.block)
            self.zeros[method] += int((maps == 0).flatten(1).all(1).sum())
            remove = remove or remover(options.removal, self.model, pixels, (maps.shape[-2], maps.shape[-1]))
            self.removed[method].append(faithfulness(remove, maps, labels.to(device), options.at))
            if self.boxes is not None and boxed.any():
                at = (*THRESHOLDS, options.threshold)
                self.located[method].append(localisation(maps[boxed], inside[boxed], at, options.upsampling))
        for when, net in (("start", self.start), ("trained", self.model)):
            self.healths[when].append(health(net, pixels))


def _measured(
    run: Result, studied: LoadedRun, initial: nn.Module, options: Options, label: str, only: bool
) -> Measured:
    methods, notes = _methods(studied, options, only)
    boxes = _boxes(studied, options)
    found = _Batches(studied, initial, options, methods, boxes)
    total = min(options.images or studied.data.val_size, studied.data.val_size)
    with tqdm(total=total, desc=label[:32], unit="image", ncols=79, leave=False, disable=None) as bar:
        for batch in studied.data.exact(options.images, options.batch_size):
            found.add(*batch)
            bar.update(len(batch[0]))
    print(f"{label}: {total:,} images, {', '.join(methods)}"[:79], flush=True)
    notes += _left_out(found, total)
    first = {"ckpt": studied.checkpoint, "model": run.model, "variant": run.variant, "seed": run.seed}
    first |= {"data": studied.data.name, "fingerprint": studied.data.fingerprint, "images": total}
    maps: Rows = []
    curves: Rows = []
    for method in methods:
        removed = Faithfulness(*(_joined(Curves, orders) for orders in zip(*found.removed[method], strict=True)))
        located = _joined(Localisation, found.located[method]) if boxes is not None else None
        maps.append(map_row(first | {"method": method}, removed, located, options.at, found.zeros[method]))
        curves += curve_rows(first | {"method": method}, removed, options.at)
    layers = [row for when, parts in found.healths.items() for row in layer_rows(first, when, parts)]
    return Measured(run, maps, curves, layers, "" if boxes is None else boxes.name, notes)


def _left_out(found: _Batches, total: int) -> list[str]:
    """Notes about the images; UsageError if none of them could be compared with boxes."""
    notes = [f"{method}: {count:,} maps of zeros" for method, count in found.zeros.items() if count]
    if found.stalled:
        notes.append("power iteration did not end for some heads, whose spectra and centralities are approximate")
    if found.boxes is None:
        return [*notes, "no localisation: boxes=DIR names the folder of ImageNet's XML annotations"]
    if not found.boxed:
        raise UsageError(f"boxes={found.options.boxes}: no image has pixels in a box and others outside")
    if found.boxed < total:
        left_out = total - found.boxed
        notes.append(f"{left_out:,} images left out of localisation: nothing or everything is in a box")
    return [*notes, *found.boxes.notes()]


def _joined(kind: Any, parts: Sequence[Any]) -> Any:
    """Concatenates the tuples of all batches."""
    return kind(*map(torch.cat, zip(*parts, strict=True)))


def _keep(studied: LoadedRun, found: Measured, options: Options) -> list[Path]:
    """Stores the figures of the `attention` maps in the run folder, if all images were measured."""
    own = [row for row in found.maps if row["method"] == OWN]
    if not own or options.images is not None:
        return []
    if not studied.is_last:
        print(f"{studied.checkpoint} is not its run's last checkpoint: no columns of the run's table", flush=True)
        return []
    how = f"block {options.block}, patches {REMOVALS[options.removal]} in steps of {options.step:.0%}"
    if found.boxes:
        how += f", against {found.boxes} boxes ({options.upsampling})"
    figures = {name: own[0][name] for name in MAP_FIGURES}
    assert studied.run_dir is not None
    path = keep_maps(studied.run_dir, figures, studied.data.fingerprint, how)
    return [] if path is None else [path]


def _gallery(out: Path, studied: Sequence[LoadedRun], options: Options) -> str:
    """Writes gallery.html with one seed of each configuration; returns its path, or the reason why not."""
    images = studied[0].data.examples(IN_GALLERY)
    networks: dict[str, LoadedRun] = {}
    for one in studied:
        same = one.data.fingerprint == studied[0].data.fingerprint
        if same and torch.equal(one.data.examples(IN_GALLERY), images):
            assert one.run_dir is not None
            networks[one.run_dir.name if one.name in networks else one.name] = one
    names = [f"image {i}" for i in range(1, len(images) + 1)]
    try:
        return str(write_gallery(out / "gallery.html", networks, images, names, options.methods))
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


def _boxes(studied: LoadedRun, options: Options) -> Boxes | None:
    images = studied.data
    if options.boxes == "ink" or (options.boxes is None and not images.paths):
        return InkBoxes()
    if options.boxes is None:
        return None
    if not images.paths:
        raise UsageError(f"boxes={options.boxes}: the images of {studied.data.name} are not files: use boxes=ink")
    return AnnotatedBoxes(options.boxes, images.paths, images.original_size, images.boxes_in_view)


def _write(out: Path, measured: Sequence[Measured], options: Options) -> str:
    """Writes all measurements so far; returns the tables as text for a terminal."""
    groups = group(m.run for m in measured)
    configs = [best_known(runs) for runs in groups]
    names = names_of(configs, shared_overrides(configs))
    name_of = {id(run): name for name, runs in zip(names, groups, strict=True) for run in runs}

    def named(part: str) -> Rows:
        return [{"name": name_of[id(m.run)]} | row for m in measured for row in getattr(m, part)]

    maps, curves, layers = named("maps"), named("curves"), named("layers")
    for stem, rows in (("attention", maps), ("attention_curves", curves), ("attention_layers", layers)):
        content = asdict(options) | {"command": command(), "rows": rows}
        atomic_write(out / f"{stem}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    others = {name: asdict(found) for name, config in zip(names, configs, strict=True) if (found := published(config))}
    words, boxes = REMOVALS[options.removal], " and ".join(dict.fromkeys(m.boxes for m in measured if m.boxes))
    write_curves(curves, words, out / "attention_curves.png")
    shown = [*map_tables(maps, options, boxes, others), *layer_tables(layers)]
    notes = [explained(options, [m.run for m in measured])]
    notes += [f"published: others' numbers, not measured here: {found['source']}." for found in others.values()]
    notes = [*dict.fromkeys(notes), *_notes(measured)]
    atomic_write(out / "attention.md", "\n\n".join([*(table.markdown() for table in shown), *notes]) + "\n")
    return "\n\n".join([*(table.text() for table in shown), *("\n".join(textwrap.wrap(note, 79)) for note in notes)])


def _notes(measured: Sequence[Measured]) -> list[str]:
    """The notes of all runs, each once, prefixed by its runs unless it concerns all."""
    about: dict[str, dict[str, list[int]]] = {}
    for m in measured:
        for note in m.notes:
            about.setdefault(note, {}).setdefault(m.run.model, []).append(m.run.seed)
    lines = []
    for note, seeds in about.items():
        runs = "; ".join(f"{model} seed {', '.join(map(str, of_model))}" for model, of_model in seeds.items())
        lines.append(note if sum(map(len, seeds.values())) == len(measured) else f"{runs}: {note}")
    return lines
