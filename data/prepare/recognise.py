"""Recognises the published forms of ImageNet-1K and ImageNet-V2, and class folders, in a folder."""

import os
from pathlib import Path

from data.datasets.image_files import class_folders, common_classes, images_in, some
from data.datasets.imagenet_v2 import FOLDERS, in_order_of_labels
from data.datasets.source import SPLITS, Split
from data.prepare.devkit import DEVKIT, labels_of
from data.prepare.originals import Files, Published, Stored
from data.prepare.parquet import Rows
from data.prepare.tars import Member, members
from infvit.errors import UsageError
from infvit.image_file import is_left

LOOKED_FOR: dict[Split, str] = {
    "train": "training images: looked for train/<synset>/*.JPEG, ILSVRC2012_img_train.tar or data/train-*.parquet",
    "val": "validation images: looked for val/<synset>/*.JPEG, val/ILSVRC2012_val_*.JPEG or ILSVRC2012_img_val.tar "
    f"(either with {DEVKIT}), or data/validation-*.parquet",
}

COUNTS = {("imagenet", "train"): 1_281_167, ("imagenet", "val"): 50_000, ("imagenet_v2", "val"): 10_000}
"""Number of images of the published data sets."""


def imagenet(source: Path, classes: list[str], indices: Path) -> dict[Split, Published]:
    """Returns the splits of ImageNet-1K that are stored in `source`.

    Args:
        source: the folder.
        classes: synsets in the order of their labels.
        indices: folder of the stored indices of archives.

    Raises:
        UsageError: a form that was recognised is damaged, or has other classes.
    """
    found: dict[Split, Published | None] = {
        "train": _synset_folders(source / "train", classes)
        or _train_tar(source / "ILSVRC2012_img_train.tar", classes, indices)
        or _parquet(source, "train", classes),
        "val": _synset_folders(source / "val", classes)
        or _flat(source / "val", source, classes)
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


def imagenet_v2(source: Path, variant: str, classes: list[str]) -> Published | None:
    """Returns one variant of ImageNet-V2, unpacked; None if it is not there."""
    folder = source / FOLDERS[variant]
    if not folder.is_dir():
        return None
    named = in_order_of_labels(class_folders(folder), classes, folder)
    return _class_folders(folder, named, classes, "number" if "0" in named else "synset")


def missing(images: Published, data: str, split: Split, classes: list[str]) -> list[str]:
    """Returns the differences from the published data set, in words; none if COUNTS does not know it."""
    expected = COUNTS.get((data, split))
    words = [f"{len(images):,} of {expected:,} images"] if expected and expected != len(images) else []
    empty = sorted(set(range(len(classes))) - set(images.labels.tolist()))
    return words + ([f"none of {some([classes[label] for label in empty])}"] if empty else [])


def _synset_folders(folder: Path, classes: list[str]) -> Published | None:
    if not folder.is_dir() or not any(entry.is_dir() and not is_left(entry.name) for entry in os.scandir(folder)):
        return None
    names = class_folders(folder)
    _check_known(set(names), classes, folder)
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
    names = {member.inside for member in found}
    _check_known(names, classes, archive)
    return _archive(f"{archive.name} ({len(names):,} tars)", archive, found, [known[m.inside] for m in found])


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
    files = sorted((source / "data").glob(f"{split}-*.parquet"))
    return Rows(f"{len(files)} Parquet files, {files[0].name} and on", files, classes) if files else None


def _check_known(names: set[str], classes: list[str], where: Path) -> None:
    strange = sorted(names - set(classes))
    if strange:
        raise UsageError(
            f"{where} has classes that ImageNet-1K does not have: {some(strange)}; expected names such as "
            f"{classes[0]}, or python -m data.prepare imagefolder"
        )
