"""Checks before anything is written: that no image is missing, and that the disk has room."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.beton.encoding import BetonSettings, encode_all
from data.datasets.image_files import some
from data.prepare.job import Job
from data.prepare.originals import Published
from infvit.errors import UsageError

COUNTS = {("imagenet", "train"): 1_281_167, ("imagenet", "val"): 50_000, ("imagenet_v2", "val"): 10_000}
"""Number of images of the published data sets; every class has the same number of evaluation images."""

SAMPLE = 64
"""Images that are encoded to estimate the size of the file."""

format_size = partial(tqdm.format_sizeof, suffix="B")


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
    """Prints the files that will be written and their sizes.

    Raises:
        UsageError: the disk has too little room.
    """
    lines, needed, there = [], 0, 0
    for job in jobs:
        read, taken = _expected(job.images, job.settings)
        lines.append((job.path.name, taken, _words(job.settings)))
        if job.split == "val":
            lines.append((job.originals.name, read, "the originals, for exact evaluation"))
        needed += taken + (read if job.split == "val" else 0)
        part = job.path.with_suffix(".beton.part")
        there += part.stat().st_size if part.exists() else 0
    free, width = shutil.disk_usage(out).free, max(len(name) for name, *_ in lines)
    print(f"expected on disk, where {format_size(free)} are free:")
    for name, size, words in [*lines, ("together", needed, "")]:
        print(f"  {name:<{width}}  {format_size(size):>8}  {words}".rstrip(), flush=True)
    if needed - there > free:
        raise UsageError(
            f"{out} has {format_size(free)} free, {format_size(needed - there)} are needed: make room, choose another "
            "--out, or write smaller images with --max-side or --mode jpg"
        )


def _expected(images: Published, settings: BetonSettings) -> list[int]:
    """Returns the bytes of the originals and of the file, estimated from a sample."""
    sample = [one for piece in encode_all(images, settings, spread(images, SAMPLE)) for one in piece]
    found = [(one.read, len(one.content)) for one in sample if not one.problem]  # a problem is reported on writing
    if not found:
        raise UsageError(f"none of the images can be decoded, such as {images.title(0)}")
    return (np.mean(found, axis=0) * len(images)).astype(int).tolist()


def _words(settings: BetonSettings) -> str:
    side = f"≤ {settings.max_resolution} px" if settings.max_resolution else "of full size"
    quality = "" if settings.mode == "raw" else f", quality {settings.quality}"
    return f"{settings.mode}, {side}{quality}"
