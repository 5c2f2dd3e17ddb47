"""Writes FFCV's files in order and shard by shard: a job that was killed resumes after the last whole shard.

FFCV's own writer writes a file in one go, in the order in which its processes finish, and waits forever for one that
died. Here FFCV encodes the images and describes the fields; one process fills the file front to back, so the same
images give the same bytes however often the job was stopped.
"""

import contextlib
import sys
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.beton.encoding import BetonSettings, Pieces, encode_all
from data.beton.shards import PAGE, Shards
from data.datasets.source import ImageSet, Originals
from infvit.errors import UsageError

SHARD = 10_000
"""Images per shard, which a killed job loses at most."""

PIECE = 64
"""Images that a process takes at a time, unless the image set gives pieces of its own."""

ROOM = "make room, or choose another folder (INFVIT_CACHE=DIR for a run, --out for data.prepare)"
SMALLER = "give a smaller data.module.beton.max_resolution or data.module.beton.mode=jpg (--max-side or --mode jpg)"
REPAIR = "repair or remove it, or let data.prepare leave such images out with --skip-bad"


def write_shards(
    images: ImageSet,
    part: Path,
    settings: BetonSettings,
    identity: str,
    title: str,
    shard: int = SHARD,
    skip_bad: bool = False,
) -> np.ndarray:
    """Writes all images to `part` and returns their (n,) of ROW, sorted by sample.

    The record of whole shards stays in the folder `shards_of(part)` until the caller removes it.

    Args:
        images: in the order of the samples; they are read in the order of their `pieces()`, if they have these.
        part: the file; writing resumes from what an earlier run left.
        settings: how images are encoded.
        identity: of images and settings: a file that was started with another one is discarded.
        title: of the progress bar.
        shard: images per shard.
        skip_bad: leave out images that cannot be decoded, with rows that are marked `bad`, instead of stopping.

    Raises:
        UsageError: an image cannot be read or is too large, the disk is full, or a writing process was killed.
    """
    cannot = f"{part.with_suffix('')} cannot be written"
    shards = Shards(part, f"{identity} {shard} {PAGE}", len(images))
    written = np.zeros(len(images), bool)
    written[shards.rows()["sample"]] = True
    todo = [piece for piece in _pieces(images) if not written[piece[0]]]
    try:
        with (
            contextlib.closing(encode_all(images, settings, todo)) as stream,
            shards.opened(),
            progress_bar(title, len(images), int(written.sum())) as progress,
        ):
            for batch in stream:
                for one in batch:
                    if one.problem and not (skip_bad and one.bad):
                        raise UsageError(f"{cannot}: {one.problem} (at {title_of(images, one.sample)}): {REPAIR}")
                    if len(one.content) > PAGE:
                        raise UsageError(
                            f"{cannot}: {title_of(images, one.sample)} takes more than the {PAGE >> 20} MiB that an "
                            f"image may take here: {SMALLER}"
                        )
                    shards.add(one)
                if len(shards.waiting) >= shard:
                    shards.keep()
                progress.update(len(batch))
            shards.keep()
            rows = shards.rows()
            shards.finish(images.labels, rows[~rows["bad"]])
    except OSError as error:
        raise UsageError(f"{cannot}: {error.strerror or error}: {ROOM}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UsageError(f"{cannot}: {' '.join(str(error).split())}: is there enough memory?") from error
    return rows


def progress_bar(title: str, total: int, done: int = 0) -> tqdm:
    """Returns tqdm's bar on standard output; off a terminal it is printed every ten seconds."""
    seconds = 0.1 if sys.stdout.isatty() else 10.0
    return tqdm(desc=title, total=total, initial=done, unit=" images", mininterval=seconds, file=sys.stdout)


def title_of(images: ImageSet, sample: int) -> str:
    return images.title(sample) if isinstance(images, Originals) else f"image {sample}"


def _pieces(images: ImageSet) -> Pieces:
    if hasattr(images, "pieces"):
        return images.pieces()
    return [list(range(start, min(start + PIECE, len(images)))) for start in range(0, len(images), PIECE)]
