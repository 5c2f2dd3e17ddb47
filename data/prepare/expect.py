"""Checks before anything is written: that no image is missing, and that the disk has room."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch.utils.data import Dataset

from data.beton.encoding import BetonSettings, encode, map_in_processes
from data.datasets.image_files import decode, some
from data.prepare.job import Job
from data.prepare.originals import Published
from infvit.errors import UsageError

COUNTS = {("imagenet", "train"): 1_281_167, ("imagenet", "val"): 50_000, ("imagenet_v2", "val"): 10_000}
"""Number of images of the published data sets; every class has the same number of evaluation images."""

SAMPLE = 64
"""Images that are encoded to estimate the size of the file."""


def missing(images: Published, kind: str, split: str, classes: list[str]) -> list[str]:
    """Returns the differences from the published data set, in words; none if COUNTS does not know `kind`."""
    expected = COUNTS.get((kind, split))
    if expected is None:
        return []
    words, counts = [], np.bincount(images.labels, minlength=len(classes))
    if len(images) != expected:
        words.append(f"{len(images):,} of {expected:,} images")
    empty = [classes[i] for i in np.flatnonzero(counts == 0)]
    if empty:
        words.append(f"none of {some(empty)}")
    each = expected // len(classes)
    uneven = [f"{counts[i]} of {classes[i]}" for i in np.flatnonzero((counts != each) & (counts > 0))]
    if split == "val" and uneven:
        words.append(f"{some(uneven)} instead of {each}")
    return words


def spread(images: Published, count: int) -> list[list[int]]:
    """Returns the indices of about `count` images, evenly spread, in parts that are read together."""
    pieces = images.pieces()
    chosen = np.unique(np.linspace(0, len(pieces) - 1, min(8, len(pieces))).round().astype(int))
    return [pieces[i][: max(count // len(chosen), 1)] for i in chosen]


def announce(jobs: Sequence[Job], out: Path) -> None:
    """Prints the files that will be written, their sizes, and the sizes with other settings.

    Raises:
        UsageError: the disk has too little room.
    """
    lines, other_ways, needed, there = [], [], 0, 0
    largest = max(jobs, key=lambda job: len(job.images))
    for job in jobs:
        others = _other_ways(job.settings) if job is largest else []
        read, taken, *sizes = _expected(job.images, [job.settings, *others])
        lines.append((job.path.name, taken, _words(job.settings)))
        if job.split == "val":
            lines.append((job.originals.name, read, "the originals, for exact evaluation"))
        needed += taken + (read if job.split == "val" else 0)
        part = job.path.with_suffix(".beton.part")
        there += part.stat().st_size if part.exists() else 0
        other_ways += [f"{_size(size):>8}  {_words(other)}" for size, other in zip(sizes, others, strict=True)]
    free, width = shutil.disk_usage(out).free, max(len(name) for name, *_ in lines)
    print(f"expected on disk, where {_size(free)} are free:")
    for name, size, words in [*lines, ("together", needed, "")]:
        print(f"  {name:<{width}}  {_size(size):>8}  {words}".rstrip())
    print(f"{largest.path.name} with other settings (--mode, --max-side, --quality):")
    print("\n".join(f"  {'':<{width}}  {words}" for words in other_ways), flush=True)
    if needed - there > free:
        raise UsageError(
            f"{out} has {_size(free)} free, {_size(needed - there)} are needed: make room, choose another --out, or "
            "write smaller images with --max-side or --mode jpg"
        )


def _expected(images: Published, ways: list[BetonSettings]) -> list[int]:
    """Returns the bytes of the originals, and of the file in each way, estimated from a sample."""
    found = [
        sizes for piece in map_in_processes(_Sizes(images, ways), spread(images, SAMPLE)) for sizes in piece if sizes
    ]
    if not found:
        raise UsageError(f"none of the images can be decoded, such as {images.title(0)}")
    return (np.mean(found, axis=0) * len(images)).astype(int).tolist()


class _Sizes(Dataset):
    def __init__(self, images: Published, ways: list[BetonSettings]) -> None:
        self.images, self.ways = images, ways

    def __getitem__(self, index: int) -> list[int]:
        try:
            content = self.images.read(index)
            image = decode(content)
        except Exception:
            return []  # reported with its name when it is written
        return [len(content), *(len(encode(image, way, index).content) for way in self.ways)]


def _other_ways(settings: BetonSettings) -> list[BetonSettings]:
    ways = [BetonSettings("jpg", 500, settings.quality), BetonSettings("jpg", None, settings.quality)]
    ways += [BetonSettings("raw", side, settings.quality) for side in (500, 256)]
    return [way for way in ways if way != settings]


def _words(settings: BetonSettings) -> str:
    side = f"≤ {settings.max_resolution} px" if settings.max_resolution else "of full size"
    quality = "" if settings.mode == "raw" else f", quality {settings.quality}"
    return f"{settings.mode}, {side}{quality}"


def _size(size: int) -> str:
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size / 1e3:.1f} kB"
