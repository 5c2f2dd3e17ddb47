"""Recognises the published forms of ImageNet-1K and ImageNet-V2, and class folders, in a folder."""

import os
import re
from collections.abc import Iterable
from pathlib import Path

from data.datasets.image_files import class_folders, common_classes, images_in, some
from data.datasets.imagenet_v2 import FOLDERS, in_order_of_labels
from data.datasets.source import SPLITS, Split
from data.prepare.devkit import FOLDER as DEVKIT
from data.prepare.devkit import labels_of
from data.prepare.originals import Files, Published, Stored
from data.prepare.parquet import Rows
from data.prepare.tars import Member, members, unzipped
from infvit.errors import UsageError

LOOKED_FOR: dict[Split, str] = {
    "train": "training images: looked for train/<synset>/*.JPEG, ILSVRC2012_img_train.tar or data/train-*.parquet",
    "val": "validation images: looked for val/<synset>/*.JPEG, val/ILSVRC2012_val_*.JPEG or ILSVRC2012_img_val.tar "
    f"(either with {DEVKIT}.tar.gz), or data/validation-*.parquet",
}


def imagenet(source: Path, classes: list[str], indices: Path) -> dict[Split, Published]:
    """Returns the splits of ImageNet-1K that are stored in `source`.

    Args:
        source: the folder.
        classes: synsets in the order of their labels.
        indices: folder of the stored indices of archives.

    Raises:
        UsageError: a form that was recognised is incomplete, or has other classes.
    """
    found: dict[Split, Published | None] = {
        "train": _synset_folders(source / "train", classes)
        or _train_tar(source / "ILSVRC2012_img_train.tar", classes, indices)
        or _parquet(source, "train", classes),
        "val": _synset_folders(source / "val", classes)
        or _flat(source / "val", source, classes)
        or _flat(source, source, classes)
        or _val_tar(source / "ILSVRC2012_img_val.tar", classes, indices)
        or _parquet(source, "validation", classes),
    }
    return {split: images for split, images in found.items() if images}


def imagefolder(source: Path) -> tuple[dict[Split, Published], list[str]]:
    """Returns both splits of any tree with class folders, and the names of the classes."""
    for split in SPLITS:
        if not (source / split).is_dir():
            raise UsageError(f"{source / split} does not exist: expected train/<class>/* and val/<class>/* in --source")
    classes = common_classes(source, ["train", "val"])
    return {split: _class_folders(source / split, classes, classes, "class") for split in SPLITS}, classes


def imagenet_v2(source: Path, variant: str, classes: list[str], indices: Path) -> Published | None:
    """Returns one variant of ImageNet-V2, from its folder or its archive, compressed or not; None without either."""
    folder = FOLDERS[variant]
    if (source / folder).is_dir():
        named = in_order_of_labels(class_folders(source / folder), classes, source / folder)
        return _class_folders(source / folder, named, classes, "number" if "0" in named else "synset")
    for name in (f"{folder.removesuffix('-format-val')}.tar", f"{folder}.tar"):
        archive, packed = source / name, source / f"{name}.gz"
        if packed.is_file() and not archive.is_file():
            archive = unzipped(packed, indices)
        if archive.is_file():
            found = members(archive, indices)
            named = in_order_of_labels(sorted({member.folder for member in found}), classes, archive)
            return _archive(archive.name, archive, found, [named.index(member.folder) for member in found])
    return None


def _synset_folders(folder: Path, classes: list[str]) -> Published | None:
    if not folder.is_dir() or not any(entry.is_dir() for entry in os.scandir(folder)):
        return None
    names = class_folders(folder)
    _check_known(names, classes, folder)
    return _class_folders(folder, names, classes, "synset")


def _class_folders(folder: Path, names: list[str], classes: list[str], kind: str) -> Published:
    """Returns the images in class folders; `names` are classes, or the folders of the labels 0, 1, ..."""
    known = {name: label for label, name in enumerate(classes)}
    images = [
        Stored(known.get(names[i], i), os.path.relpath(path, f"{folder.name}/{names[i]}"), str(folder.parent / path))
        for path, i in images_in(folder, names)
    ]
    return Files(f"{folder.name}/ with {kind} folders", images)


def _flat(folder: Path, root: Path, classes: list[str]) -> Published | None:
    names = sorted(path.name for path in folder.glob("ILSVRC2012_val_*.JPEG"))
    if not names:
        return None
    labels = labels_of(names, root, classes)
    images = [Stored(label, name, str(folder / name)) for name, label in zip(names, labels, strict=True)]
    return Files(f"{folder.name}/ flat, labels of the devkit", images)


def _train_tar(archive: Path, classes: list[str], indices: Path) -> Published | None:
    if not archive.is_file():
        return None
    found = members(archive, indices)
    known = {name: label for label, name in enumerate(classes)}
    names = {member.folder for member in found}
    _check_known(names, classes, archive)
    return _archive(f"{archive.name} ({len(names):,} tars)", archive, found, [known[m.folder] for m in found])


def _val_tar(archive: Path, classes: list[str], indices: Path) -> Published | None:
    if not archive.is_file():
        return None
    found = members(archive, indices)
    labels = labels_of([member.short for member in found], archive.parent, classes)
    return _archive(f"{archive.name}, labels of the devkit", archive, found, labels)


def _archive(kind: str, archive: Path, found: list[Member], labels: list[int]) -> Published:
    labelled = zip(found, labels, strict=True)
    return Files(kind, (Stored(label, m.short, str(archive), m.start, m.size, m.name) for m, label in labelled))


def _parquet(source: Path, split: str, classes: list[str]) -> Published | None:
    for folder in (source / "data", source):
        files = sorted(folder.glob(f"{split}-*.parquet"))
        if files:
            _check_whole(files)
            return Rows(f"{len(files)} Parquet files, {files[0].name} and on", files, classes)
    return None


def _check_whole(files: list[Path]) -> None:
    """Raises UsageError if files are missing; `train-00003-of-00294.parquet` contains their number."""
    parts = [re.search(r"-(\d+)-of-(\d+)\.parquet$", file.name) for file in files]
    count = int(parts[0][2]) if parts[0] else 0
    missing = sorted(set(range(count)) - {int(part[1]) for part in parts if part})
    if missing:
        raise UsageError(
            f"{files[0].parent} holds {len(files)} of {count} {files[0].name.split('-')[0]} files; missing are those "
            f"with the numbers {some([f'{number:05}' for number in missing])}: fetch them"
        )


def _check_known(names: Iterable[str], classes: list[str], where: Path) -> None:
    strange = sorted(set(names) - set(classes))
    if strange:
        raise UsageError(
            f"{where} has classes that ImageNet-1K does not have: {some(strange)}; expected names such as "
            f"{classes[0]}, or python -m data.prepare imagefolder"
        )
