"""Recognises the published forms of ImageNet-1K and ImageNet-V2, and class folders, in a folder."""

import os
import re
from collections.abc import Callable
from pathlib import Path

from data.datasets.image_files import class_folders, common_classes, images_in, some
from data.datasets.imagenet_v2 import FOLDERS, in_order_of_labels
from data.datasets.source import Split
from data.prepare.devkit import FOLDER as DEVKIT
from data.prepare.devkit import labels_of
from data.prepare.originals import Files, Published, Slices
from data.prepare.parquet import Rows
from data.prepare.tars import Member, members, unzipped
from infvit.errors import UsageError

Form = Callable[[], Published | None]
"""Returns the images in one form; None if the folder does not hold it."""

PARQUET = {"train": "train", "val": "validation"}
WORDS = {"train": "training images", "val": "validation images"}


def imagenet(source: Path, classes: list[str], indices: Path) -> dict[Split, Published]:
    """Returns the splits of ImageNet-1K that are stored in `source`.

    Args:
        source: the folder.
        classes: synsets in the order of their labels.
        indices: folder of the stored indices of archives.

    Raises:
        UsageError: a form that was recognised is incomplete, or has other classes.
    """
    forms: dict[Split, list[Form]] = {
        "train": [
            lambda: _synset_folders(source / "train", classes),
            lambda: _train_tar(source / "ILSVRC2012_img_train.tar", classes, indices),
            lambda: _parquet(source, "train", classes),
        ],
        "val": [
            lambda: _synset_folders(source / "val", classes),
            lambda: _flat(source / "val", source, classes),
            lambda: _flat(source, source, classes),
            lambda: _val_tar(source / "ILSVRC2012_img_val.tar", classes, indices),
            lambda: _parquet(source, "val", classes),
        ],
    }
    found = {split: next((images for form in each if (images := form())), None) for split, each in forms.items()}
    return {split: images for split, images in found.items() if images}


def imagefolder(source: Path) -> tuple[dict[Split, Published], list[str]]:
    """Returns both splits of any tree with class folders, and the names of the classes."""
    for split in ("train", "val"):
        if not (source / split).is_dir():
            raise UsageError(f"{source / split} does not exist: expected train/<class>/* and val/<class>/* in --source")
    classes = common_classes(source, ["train", "val"])
    return {split: _class_folders(source / split, classes, classes, "class") for split in ("train", "val")}, classes


def imagenet_v2(source: Path, variant: str, classes: list[str], indices: Path) -> Published | None:
    """Returns one variant of ImageNet-V2, from its folder or its archive, compressed or not; None without either."""
    folder = FOLDERS[variant]
    if (source / folder).is_dir():
        named = in_order_of_labels(class_folders(source / folder), classes, source / folder)
        kind = "number" if "0" in named else "synset"
        return _class_folders(source / folder, named, classes, kind)
    for name in (f"{folder.removesuffix('-format-val')}.tar", f"{folder}.tar"):
        archive, packed = source / name, source / f"{name}.gz"
        if packed.is_file() and not archive.is_file():
            archive = unzipped(packed, indices)
        if archive.is_file():
            found = members(archive, indices)
            named = in_order_of_labels(sorted({member.folder for member in found}), classes, archive)
            return _slices(archive.name, archive, found, {n: i for i, n in enumerate(named)})
    return None


def expected(source: Path, split: Split) -> str:
    """Returns the error message for a split that was not found: the forms that were looked for."""
    forms = {
        "train": "train/<synset>/*.JPEG, ILSVRC2012_img_train.tar or data/train-*.parquet",
        "val": "val/<synset>/*.JPEG, val/ILSVRC2012_val_*.JPEG or ILSVRC2012_img_val.tar (either with "
        f"{DEVKIT}.tar.gz), or data/validation-*.parquet",
    }
    return f"{source} holds no {WORDS[split]}: looked for {forms[split]}"


def _synset_folders(folder: Path, classes: list[str]) -> Published | None:
    if not folder.is_dir() or not any(entry.is_dir() for entry in os.scandir(folder)):
        return None
    names = class_folders(folder)
    _all_known(names, classes, folder)
    return _class_folders(folder, names, classes, "synset")


def _class_folders(folder: Path, names: list[str], classes: list[str], kind: str) -> Published:
    """Returns the images in class folders; `names` are classes, or the folders of the labels 0, 1, ..."""
    known = {name: label for label, name in enumerate(classes)}
    labels = [known.get(name, place) for place, name in enumerate(names)]
    samples = []
    for path, place in images_in(folder, names):
        name = os.path.relpath(path, os.path.join(folder.name, names[place]))
        samples.append((path, name, labels[place]))
    return Files(f"{folder.name}/ with {kind} folders", folder.parent, samples)


def _flat(folder: Path, root: Path, classes: list[str]) -> Published | None:
    if not folder.is_dir():
        return None
    names = sorted(e.name for e in os.scandir(folder) if re.match(r"ILSVRC2012_val_.*\.JPEG$", e.name))
    if not names:
        return None
    labels = labels_of(names, root, classes)
    samples = [(name, name, label) for name, label in zip(names, labels, strict=True)]
    return Files(f"{folder.name}/ flat, labels of the devkit", folder, samples)


def _train_tar(archive: Path, classes: list[str], indices: Path) -> Published | None:
    if not archive.is_file():
        return None
    found = members(archive, indices)
    names = sorted({member.folder for member in found})
    _all_known(names, classes, archive)
    kind = f"{archive.name} ({len(names):,} tars)"
    return _slices(kind, archive, found, {name: label for label, name in enumerate(classes)})


def _val_tar(archive: Path, classes: list[str], indices: Path) -> Published | None:
    if not archive.is_file():
        return None
    found = members(archive, indices)
    labels = labels_of([member.short for member in found], archive.parent, classes)
    samples = [(m.name, m.short, label, m.start, m.size) for m, label in zip(found, labels, strict=True)]
    return Slices(f"{archive.name}, labels of the devkit", archive, samples)


def _slices(kind: str, archive: Path, found: list[Member], labels: dict[str, int]) -> Published:
    return Slices(kind, archive, [(m.name, m.short, labels[m.folder], m.start, m.size) for m in found])


def _parquet(source: Path, split: Split, classes: list[str]) -> Published | None:
    for folder in (source / "data", source):
        files = sorted(folder.glob(f"{PARQUET[split]}-*.parquet"))
        if files:
            _all_parts(files)
            return Rows(f"{len(files)} Parquet files, {files[0].name} and on", files, classes)
    return None


def _all_parts(files: list[Path]) -> None:
    """Raises UsageError if files are missing; `train-00003-of-00294.parquet` contains their number."""
    parts = [re.search(r"-(\d+)-of-(\d+)\.parquet$", file.name) for file in files]
    count = int(parts[0][2]) if parts[0] else 0
    missing = sorted(set(range(count)) - {int(part[1]) for part in parts if part})
    if missing:
        raise UsageError(
            f"{files[0].parent} holds {len(files)} of {count} {files[0].name.split('-')[0]} files; missing are those "
            f"with the numbers {some([f'{number:05}' for number in missing])}: fetch them"
        )


def _all_known(names: list[str], classes: list[str], where: Path) -> None:
    strange = sorted(set(names) - set(classes))
    if strange:
        raise UsageError(
            f"{where} has classes that ImageNet-1K does not have: {some(strange)}; expected names such as "
            f"{classes[0]}, or python -m data.prepare imagefolder"
        )
