"""How good the maps of trained models are, and what their layers do: removal of patches, boxes, centrality, health."""

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
from infvit.measure.attention.options import Setting
from infvit.measure.attention.patch_removal import REMOVALS, Curves, Faithfulness, Remove, faithfulness, remover
from infvit.measure.attention.quality_plots import write_curves
from infvit.measure.attention.quality_rows import Rows, curve_rows, layer_rows, map_row
from infvit.measure.attention.quality_table import explained, layer_tables, map_tables
from infvit.measure.model_source import LoadedRun, ModelSource
from infvit.run.environment import command
from infvit.run.files import atomic_write
from infvit.run.result import RESULT_FILE, Result

IN_GALLERY = 8
"""Images of the gallery."""

OWN = "attention"
"""The method that every model offers: what its attention weighs tokens with."""


class Measured(NamedTuple):
    """One run: rows on its maps, points of their curves, rows on its layers, whose boxes, and what is said beside."""

    run: Result
    maps: Rows
    curves: Rows
    layers: Rows
    boxes: str
    notes: list[str]


def attention(source: ModelSource, out: Path, checkpoints: str | Sequence[str], setting: Setting) -> float:
    """Measures maps and layers of trained models; writes attention.json and .md, curves, layers, and a gallery.

    Seeds of one configuration become a mean with its interval; one seed has the interval over its images.

    Returns:
        The MoRF-AOC of the first run's first method, a fraction.

    Raises:
        UsageError: for a method or block that a model does not have, no checkpoint, boxes that are none.
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
            raise UsageError(f"ckpt={path} is of seed {run.seed} of {run.model} again: give each seed once")
        label = f"{i + 1}/{len(paths)} {run.model} seed {run.seed}"
        if OWN not in offered(studied.model) and len(paths) > 1:
            print(f"{label}: its attention weighs no tokens, left out", flush=True)
            continue
        found = _measured(run, studied, source.initial(path), setting, label, len(paths) == 1)
        measured.append(found)
        shown_in_gallery.setdefault(run.config_key, studied)
        shown = _write(out, measured, setting)
        kept += _keep(studied, found, setting)
    if not measured:
        raise UsageError(f"ckpt={', '.join(paths)}: none of these models has an attention that weighs tokens")
    print(f"\n{shown}\n\n{out / 'attention.json'}\n{_gallery(out, list(shown_in_gallery.values()), setting)}")
    if kept:
        print(f"kept in {len(kept)} run folders, as columns of python -m infvit.compare RUN_DIRS")
    return float(measured[0].maps[0]["morf_aoc"])


def _paths(checkpoints: str | Sequence[str]) -> list[str]:
    """The files of patterns and names; a name without a file is left for the reader of checkpoints to tell."""
    given = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    paths = [path for name in given for path in (sorted(glob.glob(name)) if glob.has_magic(name) else [name])]
    if not paths:
        raise UsageError(f"ckpt={', '.join(given)} fits no file: give .ckpt files, such as RUN/*/checkpoints/last.ckpt")
    return list(dict.fromkeys(paths))


class _Batches:
    """What was found of one model so far, batch by batch; `telling` counts images with pixels in boxes and outside."""

    def __init__(
        self, studied: LoadedRun, initial: nn.Module, setting: Setting, methods: Sequence[str], boxes: Boxes | None
    ) -> None:
        self.model, self.start = studied.model.to(setting.device), initial.to(setting.device)
        self.studied, self.setting, self.methods, self.boxes = studied, setting, methods, boxes
        self.removed: dict[str, list[Faithfulness]] = {method: [] for method in methods}
        self.located: dict[str, list[Localisation]] = {method: [] for method in methods}
        self.healths: dict[str, list[Health]] = {"start": [], "trained": []}
        self.zeros = dict.fromkeys(methods, 0)
        self.telling, self.stalled = 0, False

    def add(self, images: Tensor, labels: Tensor, places: Tensor) -> None:
        """Takes what `EvaluationData.exact` gives; keeps to one note what is warned of in every batch."""
        with warnings.catch_warnings(record=True) as said:
            self._add(images, labels, places)
        for warning in said:
            if str(warning.message).startswith("power iteration stopped"):
                self.stalled = True
            else:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)

    def _add(self, images: Tensor, labels: Tensor, places: Tensor) -> None:
        setting, device = self.setting, self.setting.device
        pixels = self.studied.data.normalised(images.to(device))
        remove: Remove | None = None
        if self.boxes is not None:
            inside = self.boxes(images, places).to(device)
            telling = inside.flatten(1).any(1) & ~inside.flatten(1).all(1)
            self.telling += int(telling.sum())
        for method in self.methods:
            maps = token_map(self.model, pixels, method, block=setting.block)
            self.zeros[method] += int((maps == 0).flatten(1).all(1).sum())
            remove = remove or remover(setting.removal, self.model, pixels, (maps.shape[-2], maps.shape[-1]))
            self.removed[method].append(faithfulness(remove, maps, labels.to(device), setting.at))
            if self.boxes is not None and telling.any():
                at = (*THRESHOLDS, setting.threshold)
                self.located[method].append(localisation(maps[telling], inside[telling], at, setting.upsampling))
        for when, net in (("start", self.start), ("trained", self.model)):
            self.healths[when].append(health(net, pixels))


def _measured(
    run: Result, studied: LoadedRun, initial: nn.Module, setting: Setting, label: str, only: bool
) -> Measured:
    methods, notes = _methods(studied, setting, only)
    boxes = _boxes(studied, setting)
    found = _Batches(studied, initial, setting, methods, boxes)
    total = min(setting.images or studied.data.val_size, studied.data.val_size)
    options: dict[str, Any] = {"unit": "image", "ncols": 79, "leave": False, "disable": None}
    with tqdm(total=total, desc=label[:32], **options) as bar:
        for batch in studied.data.exact(setting.images, setting.batch_size):
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
        maps.append(map_row(first | {"method": method}, removed, located, setting.at, found.zeros[method]))
        curves += curve_rows(first | {"method": method}, removed, setting.at)
    layers = [row for when, parts in found.healths.items() for row in layer_rows(first, when, parts)]
    return Measured(run, maps, curves, layers, "" if boxes is None else boxes.name, notes)


def _left_out(found: _Batches, total: int) -> list[str]:
    """What must be said of the images; UsageError if none of them could be compared with boxes."""
    notes = [f"{method}: {count:,} maps of zeros" for method, count in found.zeros.items() if count]
    if found.stalled:
        notes.append("power iteration did not end for some heads, whose spectra and centralities are approximate")
    if found.boxes is None:
        return [*notes, "no localisation: boxes=DIR names the folder of ImageNet's XML annotations"]
    if not found.telling:
        raise UsageError(f"boxes={found.setting.boxes}: no image has pixels in a box and others outside")
    if found.telling < total:
        left_out = total - found.telling
        notes.append(f"{left_out:,} images left out of localisation: nothing or everything is in a box")
    return [*notes, *found.boxes.notes()]


def _joined(kind: Any, parts: Sequence[Any]) -> Any:
    """Tuples of the batches as one of all images."""
    return kind(*map(torch.cat, zip(*parts, strict=True)))


def _keep(studied: LoadedRun, found: Measured, setting: Setting) -> list[Path]:
    """For the tables of runs: the maps of the model's own attention, if all images were measured."""
    own = [row for row in found.maps if row["method"] == OWN]
    if not own or setting.images is not None:
        return []
    if not studied.is_last:
        print(f"{studied.checkpoint} is not its run's last checkpoint: no columns of the run's table", flush=True)
        return []
    how = f"block {setting.block}, patches {REMOVALS[setting.removal]} in steps of {setting.step:.0%}"
    if found.boxes:
        how += f", against {found.boxes} boxes ({setting.upsampling})"
    figures = {name: own[0][name] for name in MAP_FIGURES}
    assert studied.run_dir is not None
    path = keep_maps(studied.run_dir, figures, studied.data.fingerprint, how)
    return [] if path is None else [path]


def _gallery(out: Path, studied: Sequence[LoadedRun], setting: Setting) -> str:
    """Writes gallery.html, a seed of each configuration that sees the first one's images; says where, or why not."""
    images = studied[0].data.examples(IN_GALLERY)
    networks: dict[str, LoadedRun] = {}
    for one in studied:
        same = one.data.fingerprint == studied[0].data.fingerprint
        if same and torch.equal(one.data.examples(IN_GALLERY), images):
            assert one.run_dir is not None
            networks[one.run_dir.name if one.name in networks else one.name] = one
    names = [f"image {i}" for i in range(1, len(images) + 1)]
    try:
        return str(write_gallery(out / "gallery.html", networks, images, names, setting.methods))
    except UsageError as error:
        return f"no gallery: {error}"


def _methods(studied: LoadedRun, setting: Setting, only: bool) -> tuple[list[str], list[str]]:
    """The methods to measure, and a line about those that this model does not offer beside others that may."""
    there = offered(studied.model)
    asked = list(there if setting.methods is None else dict.fromkeys(setting.methods))
    absent = [method for method in asked if method not in there]
    line = f"{', '.join(absent)} not offered: it offers {', '.join(there)}"
    if absent and (only or len(absent) == len(asked)):
        raise UsageError(f"methods={line.replace('it offers', studied.name + ' offers')}")
    return [method for method in asked if method in there], [line] if absent else []


def _boxes(studied: LoadedRun, setting: Setting) -> Boxes | None:
    images = studied.data
    if setting.boxes == "ink" or (setting.boxes is None and not images.paths):
        return InkBoxes()
    if setting.boxes is None:
        return None
    if not images.paths:
        raise UsageError(f"boxes={setting.boxes}: the images of {studied.data.name} lie in no files: use boxes=ink")
    return AnnotatedBoxes(setting.boxes, images.paths, images.original_size, images.boxes_in_view)


def _write(out: Path, measured: Sequence[Measured], setting: Setting) -> str:
    """Writes all that was measured so far; returns the tables as text for a terminal."""
    groups = group(m.run for m in measured)
    configs = [best_known(runs) for runs in groups]
    names = names_of(configs, shared_overrides(configs))
    name_of = {id(run): name for name, runs in zip(names, groups, strict=True) for run in runs}

    def named(part: str) -> Rows:
        return [{"name": name_of[id(m.run)]} | row for m in measured for row in getattr(m, part)]

    maps, curves, layers = named("maps"), named("curves"), named("layers")
    for stem, rows in (("attention", maps), ("attention_curves", curves), ("attention_layers", layers)):
        content = asdict(setting) | {"command": command(), "rows": rows}
        atomic_write(out / f"{stem}.json", json.dumps(content, indent=1, allow_nan=False) + "\n")
    others = {name: asdict(found) for name, config in zip(names, configs, strict=True) if (found := published(config))}
    words, boxes = REMOVALS[setting.removal], " and ".join(dict.fromkeys(m.boxes for m in measured if m.boxes))
    write_curves(curves, words, out / "attention_curves.png")
    shown = [*map_tables(maps, setting, boxes, others), *layer_tables(layers)]
    notes = [explained(setting, [m.run for m in measured])]
    notes += [f"published: others' numbers, not measured here: {found['source']}." for found in others.values()]
    notes = [*dict.fromkeys(notes), *_told(measured)]
    atomic_write(out / "attention.md", "\n\n".join([*(table.markdown() for table in shown), *notes]) + "\n")
    return "\n\n".join([*(table.text() for table in shown), *("\n".join(textwrap.wrap(note, 79)) for note in notes)])


def _told(measured: Sequence[Measured]) -> list[str]:
    """The notes of all runs, each once, with the runs that it is about where it is not about all."""
    about: dict[str, dict[str, list[int]]] = {}
    for m in measured:
        for note in m.notes:
            about.setdefault(note, {}).setdefault(m.run.model, []).append(m.run.seed)
    lines = []
    for note, seeds in about.items():
        runs = "; ".join(f"{model} seed {', '.join(map(str, of_model))}" for model, of_model in seeds.items())
        lines.append(note if sum(map(len, seeds.values())) == len(measured) else f"{runs}: {note}")
    return lines
