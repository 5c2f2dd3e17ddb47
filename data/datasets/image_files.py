"""Images in class folders on disk: found, and read and decoded once to check them and take their fingerprint."""

import hashlib
import json
import os
import sys
import warnings
from collections import Counter
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from data.datasets.source import ImageSet
from infvit.errors import UsageError, expect
from infvit.image_file import SUFFIXES, BadImageError, decode, files_in, is_image, is_left
from infvit.run.files import create_once

Sample = tuple[str, int]
"""The path of an image, relative to the root of its tree, and its label."""


def image_sets(
    root: Path, found: dict[str, list[Sample]], cache_dir: str, name: str, skip_bad: bool
) -> dict[str, ImageSet]:
    """Returns the image sets of a tree by name, in the order of their samples.

    The first time every image is read and decoded, to name those that cannot be and to take the fingerprint of the
    content, which are stored in `cache_dir`. Later runs recognise the tree by the names, sizes and times of its files.

    Raises:
        UsageError: an image cannot be read, or not be decoded; with `skip_bad` these are left out with a warning.
    """
    stats = [(path, *size_and_time(root / path)) for samples in found.values() for path, _ in samples]
    signature = hashlib.sha256(json.dumps([str(root), stats]).encode()).hexdigest()[:32]
    stored = Path(cache_dir).expanduser() / "imagefolder" / f"{signature}.json"
    with create_once(stored) as part:
        if part is not None:
            part.write_text(json.dumps(_inspect(root, found, name)))
    known = json.loads(stored.read_text())
    bad = known["bad"]
    if bad and not skip_bad:
        raise UsageError(
            f"{len(bad)} of the images under {root} cannot be decoded, the first is {root / bad[0]} "
            f"({_problem(_read(root / bad[0]))}): repair or remove it, or leave such images out with data.skip_bad=true"
        )
    if bad:
        warnings.warn(f"left out {len(bad)} images that cannot be decoded: {some(bad)}", stacklevel=3)
    return {
        split: ImageFiles(root, [s for s in samples if s[0] not in set(bad)], known[split])
        for split, samples in found.items()
    }


class ImageFiles:
    """Images on disk, decoded on access."""

    def __init__(self, root: Path, samples: list[Sample], fingerprint: str) -> None:
        self.root, self._fingerprint = root, fingerprint
        self.paths = [path for path, _ in samples]
        self.labels = np.array([label for _, label in samples], dtype=np.int64)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        content = self.read(index)
        try:
            return decode(content), int(self.labels[index])
        except BadImageError as error:  # it could be decoded when the run began
            raise UsageError(
                f"{self.title(index)} has changed while the run reads it ({error}): repair it, resume with resume=auto"
            ) from error

    def read(self, index: int) -> bytes:
        """Returns the file as it is."""
        return _read(self.root / self.paths[index])

    def title(self, index: int) -> str:
        return str(self.root / self.paths[index])

    def fingerprint(self) -> str:
        return self._fingerprint


NO_IMAGES = ImageFiles(Path(), [], "")


def common_classes(root: Path, splits: list[str]) -> list[str]:
    """Returns the class folders of a tree; UsageError if its splits have different ones."""
    classes = class_folders(root / splits[0])
    extra = sorted(set(class_folders(root / splits[-1])) ^ set(classes))
    if extra:
        raise UsageError(f"{root}: train and val must have the same class folders; only in one of them: {some(extra)}")
    return classes


def class_folders(root: Path) -> list[str]:
    """Returns the sorted names of the class folders; UsageError if there are none, or one that cannot be a class."""
    names = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_left(entry.name))
    expect(bool(names), f"{root} has no class folders", f"{root}/<class>/<image>")
    folders: dict[str, str] = {os.path.realpath(path): path.name for path in (root, *root.parents)}
    for name in names:
        expect(name.isprintable(), f"{root} has the class folder {name!a}", "a name of printable characters")
        twin = folders.setdefault(os.path.realpath(root / name), name)
        expect(twin is name, f"{root / name} and {twin} are one folder", "a folder for each class")
    return names


def images_in(root: Path, classes: list[str]) -> list[tuple[str, int]]:
    """Returns (path relative to the tree, label) of every image of a split, sorted by class and path.

    A warning counts the files with other endings.
    """
    samples, others = [], Counter[str]()
    for label, name in enumerate(classes):
        files = sorted(os.path.relpath(path, root.parent) for path in files_in(root / name))
        paths = [path for path in files if is_image(path)]
        others.update(os.path.splitext(path)[1] or "no ending" for path in files if not is_image(path))
        expect(bool(paths), f"{root / name} holds no images", f"files ending in {', '.join(sorted(SUFFIXES))}")
        samples += [(path, label) for path in paths]
    if others:
        kinds = some([f"{count:,} {ending}" for ending, count in others.most_common()])
        ours = ", ".join(sorted(SUFFIXES))
        warnings.warn(f"{root}: {others.total():,} files are passed over ({kinds}): images end in {ours}", stacklevel=3)
    return samples


def some(names: list[str]) -> str:
    """Returns the first three names and the number of the others."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def size_and_time(path: Path) -> tuple[int, int]:
    """Returns the bytes of a file and its modification time in ns; UsageError if it cannot be read."""
    try:
        stat = os.stat(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    return stat.st_size, stat.st_mtime_ns


def _inspect(root: Path, found: dict[str, list[Sample]], name: str) -> dict:
    """Returns {"bad": paths, set name: its fingerprint, ...}."""
    known: dict = {"bad": []}
    with ThreadPool() as pool:
        for split, samples in found.items():
            digests = pool.imap(lambda sample: _digest(root / sample[0]), samples, chunksize=64)
            title = f"reading {split} images of {name}"
            progress = tqdm(digests, title, len(samples), disable=len(samples) <= 2000, file=sys.stdout)
            content = hashlib.sha256()
            for (path, label), digest in zip(samples, progress, strict=True):
                if digest is None:
                    known["bad"].append(path)
                else:
                    content.update(f"{digest} {label}\n".encode())
            known[split] = content.hexdigest()
    return known


def _digest(path: Path) -> str | None:
    """Returns the sha256 of the file's bytes; None if they are not a whole image."""
    content = _read(path)
    return None if _problem(content) else hashlib.sha256(content).hexdigest()


def _problem(content: bytes) -> str | None:
    """Returns why the content of a file is not an image; None if it is one."""
    try:
        decode(content)
    except BadImageError as error:
        return str(error)
    return None


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: OSError) -> UsageError:
    return UsageError(f"{path} cannot be read ({error.strerror}): repair or remove it")
