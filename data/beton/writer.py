"""Writes FFCV's files in order and shard by shard: a job that is killed goes on after the last whole shard.

FFCV's own writer writes a file in one go, in the order in which its processes happen to finish, and waits forever for
one that died. Here FFCV encodes the images and describes the fields; the file is filled front to back by one process,
so that the same images give the same bytes however often the job was stopped.
"""

import contextlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.beton.encoding import BAD, BetonSettings, Pieces, encoded
from data.beton.shards import PAGE, Shards
from data.datasets.source import ImageSet, InPieces, Originals
from data.progress import ImageProgress
from infvit.errors import UsageError

SHARD = 10_000
"""Images per shard: what a killed job does again at most."""

PIECE = 64
"""Images that a process takes at a time, where the images do not say how they lie."""


@dataclass(frozen=True)
class Advice:
    """What a user can do; the words differ between a training run and the command that prepares."""

    room: str = "make room, or choose another folder with INFVIT_CACHE=DIR"
    smaller: str = "give a smaller data.module.beton.max_resolution, or data.module.beton.mode=jpg"
    bad: str = "mend or remove it"


TRAINING = Advice()


def write_shards(
    images: ImageSet,
    part: Path,
    settings: BetonSettings,
    identity: str,
    title: str,
    shard: int = SHARD,
    skip_bad: bool = False,
    advice: Advice = TRAINING,
) -> np.ndarray:
    """Writes all images to `part` and gives (n,) of ROW, by sample.

    What is known of finished shards lies in the folder `shards_of(part)` until the caller removes it.

    Args:
        images: in the order of the samples; `pieces()`, where they have it, says in which order they are best read.
        part: the file; what an earlier run left of it is gone on with.
        settings: how images are encoded.
        identity: of images and settings: what was begun with another one is thrown away.
        title: of the progress.
        shard: images per shard.
        skip_bad: leave out images that cannot be decoded (their rows say so) instead of stopping.
        advice: what error messages recommend.

    Raises:
        UsageError: an image cannot be read or does not fit, the disk is full, or a writing process was killed.
    """
    cannot = f"{part.with_suffix('')} cannot be written"
    shards = Shards(part, f"{identity} {shard} {PAGE}", len(images))
    done, todo = shards.done, []
    for piece in _pieces(images):
        if done >= len(piece):
            done -= len(piece)
        else:
            todo.append(piece)
    try:
        with (
            contextlib.closing(encoded(images, settings, todo)) as stream,
            shards.opened(),
            ImageProgress(title, len(images), shards.done) as progress,
        ):
            for batch in stream:
                for one in batch:
                    if one.problem and not (skip_bad and one.oddities & BAD):
                        raise UsageError(f"{cannot}: {one.problem} (at {title_of(images, one.sample)}): {advice.bad}")
                    if len(one.content) > PAGE:
                        raise UsageError(
                            f"{cannot}: {title_of(images, one.sample)} takes more than the {PAGE >> 20} MiB that an "
                            f"image may take here: {advice.smaller}"
                        )
                    shards.add(one)
                if shards.waiting >= shard:
                    shards.keep()
                progress.advance(len(batch), sum(one.read for one in batch))
            shards.keep()
            rows = shards.rows()
            shards.finish(images.labels, rows[rows["oddities"] & BAD == 0])
    except OSError as error:
        raise UsageError(f"{cannot}: {error.strerror or error}: {advice.room}") from error
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UsageError(f"{cannot}: {' '.join(str(error).split())}: is there enough memory?") from error
    return rows


def title_of(images: ImageSet, sample: int) -> str:
    return images.title(sample) if isinstance(images, Originals) else f"image {sample}"


def _pieces(images: ImageSet) -> Pieces:
    if isinstance(images, InPieces):
        return images.pieces()
    return [list(range(start, min(start + PIECE, len(images)))) for start in range(0, len(images), PIECE)]
