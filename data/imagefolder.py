"""Any tree of images: root/train/<class>/** and root/val/<class>/**."""

import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from rich.progress import track

from data.cache import made_once
from data.source import ImageSet
from infvit.errors import UsageError

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}


class ImageFolder:
    """A tree of images with a folder for each class, the same classes in train and val.

    The first time, every image is read and decoded: what cannot be is named, and the content's fingerprint is taken.
    Later runs recognise the tree by names, sizes and times of its files. Images are decoded as torchvision's
    ImageFolder does it: to RGB, without regard to EXIF rotation.

    Args:
        root: the tree.
        cache_dir: where the fingerprint is kept.
        name: of the data set, for messages.
        num_classes: expected number of classes; None takes what is there.
        skip_bad: leave out images that cannot be decoded, with a warning, instead of stopping.
        how_to_prepare: said when the tree is not there.

    Raises:
        UsageError: missing or empty folders, classes that differ, a wrong number of classes, a corrupt image.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        name: str = "imagefolder",
        num_classes: int | None = None,
        skip_bad: bool = False,
        how_to_prepare: str = "",
    ) -> None:
        self.name, self.root = name, Path(root).expanduser().resolve()
        for split in ("train", "val"):
            if not (self.root / split).is_dir():
                advice = how_to_prepare or "expected train/<class>/* and val/<class>/* in data.root=DIR"
                raise UsageError(f"no images for data={name}: the folder {self.root / split} does not exist; {advice}")
        self.classes = _folders(self.root / "train")
        extra = sorted(set(_folders(self.root / "val")) ^ set(self.classes))
        if extra:
            raise UsageError(
                f"{self.root}: train and val must have the same class folders; only in one of them: {_some(extra)}"
            )
        if num_classes is not None and len(self.classes) != num_classes:
            raise UsageError(
                f"{self.root / 'train'} has {len(self.classes)} class folders ({_some(self.classes)}), "
                f"data.num_classes={num_classes} expects {num_classes}: give data.num_classes={len(self.classes)} "
                "or the right data.root"
            )
        found = {split: _images(self.root / split, self.classes) for split in ("train", "val")}
        known = self._inspected(found, Path(cache_dir).expanduser())
        bad = known["bad"]
        if bad and not skip_bad:
            raise UsageError(
                f"{len(bad)} of the images under {self.root} cannot be decoded, the first is {self.root / bad[0]}: "
                "mend or remove it, or leave such images out with data.skip_bad=true"
            )
        if bad:
            warnings.warn(f"left out {len(bad)} images that cannot be decoded: {_some(bad)}", stacklevel=2)
        self._sets = {
            split: _Files(self.root, [s for s in samples if s[0] not in set(bad)], known[split])
            for split, samples in found.items()
        }

    def split(self, split: Literal["train", "val"]) -> ImageSet:
        """The images of one split, sorted by class and path."""
        return self._sets[split]

    def _inspected(self, found: dict[str, list[tuple[str, int]]], cache_dir: Path) -> dict:
        """{"bad": paths, "train": fingerprint, "val": fingerprint}, from the cache if the tree was seen before."""
        stats = [(path, *self._stat(path)) for samples in found.values() for path, _ in samples]
        signature = hashlib.sha256(json.dumps([str(self.root), stats]).encode()).hexdigest()[:32]
        memo = cache_dir / "imagefolder" / f"{signature}.json"
        with made_once(memo) as path:
            if path is not None:
                path.write_text(json.dumps(self._inspect(found)))
        return json.loads(memo.read_text())

    def _stat(self, path: str) -> tuple[int, int]:
        try:
            stat = os.stat(self.root / path)
        except OSError as error:
            raise _unreadable(self.root / path, error) from error
        return stat.st_size, stat.st_mtime_ns

    def _inspect(self, found: dict[str, list[tuple[str, int]]]) -> dict:
        known: dict = {"bad": []}
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for split, samples in found.items():
                # Part by part: a million waiting tasks at once would take 2 GB.
                parts = (samples[start : start + 4096] for start in range(0, len(samples), 4096))
                digests: Iterable[str | None] = (
                    digest for part in parts for digest in pool.map(self._digest, [path for path, _ in part])
                )
                if len(samples) > 2000:
                    digests = track(digests, f"reading {split} images of {self.name}", len(samples))
                content = hashlib.sha256()
                for (path, label), digest in zip(samples, digests, strict=True):
                    if digest is None:
                        known["bad"].append(path)
                    else:
                        content.update(f"{digest} {label}\n".encode())
                known[split] = content.hexdigest()
        return known

    def _digest(self, path: str) -> str | None:
        """sha256 of the file's bytes, or None if they are no whole image."""
        try:
            content = (self.root / path).read_bytes()
        except OSError as error:
            raise _unreadable(self.root / path, error) from error
        try:
            with Image.open(io.BytesIO(content)) as image:
                image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
            return None
        return hashlib.sha256(content).hexdigest()


class _Files:
    def __init__(self, root: Path, samples: list[tuple[str, int]], fingerprint: str) -> None:
        self.root, self._fingerprint = root, fingerprint
        self.paths = [path for path, _ in samples]
        self.labels = np.array([label for _, label in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        with Image.open(self.root / self.paths[index]) as image:
            return image.convert("RGB"), int(self.labels[index])

    def fingerprint(self) -> str:
        return self._fingerprint


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be read ({error.strerror}): mend or remove it")


def _folders(root: Path) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise UsageError(f"{root} has no class folders: expected {root}/<class>/<image>")
    return names


def _images(root: Path, classes: list[str]) -> list[tuple[str, int]]:
    """(path relative to the tree, label) of every image of a split."""
    samples = []
    for label, name in enumerate(classes):
        paths = sorted(
            os.path.relpath(os.path.join(folder, file), root.parent)
            for folder, _, files in os.walk(root / name, followlinks=True)
            for file in files
            if os.path.splitext(file)[1].lower() in SUFFIXES and not file.startswith(".")
        )
        if not paths:
            raise UsageError(f"{root / name} holds no images: expected files ending in {', '.join(sorted(SUFFIXES))}")
        samples += [(path, label) for path in paths]
    return samples


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
