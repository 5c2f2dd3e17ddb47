"""FFCV's files: each split written once, under a name made of its content and settings, and checked before use."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from data.beton_writer import write_watched
from data.cache import made_once
from data.source import ImageSet, Split
from infvit.errors import UsageError

FORMAT = 2
"""FFCV's file version; part of the name, so that another version writes its own files."""


@dataclass(frozen=True)
class BetonSettings:
    """How images lie in the file: `raw` pixels or `jpg`, at most `max_resolution` pixels on a side (None: as they are).

    ImageNet at 500 pixels and quality 90 takes about 90 GB, as raw pixels about 700 GB.
    """

    mode: str = "raw"
    max_resolution: int | None = None
    quality: int = 90


def beton_path(images: ImageSet, name: str, split: Split, cache_dir: Path, settings: BetonSettings) -> Path:
    """Where the file of these images with these settings lies, or will."""
    identity = json.dumps([images.fingerprint(), asdict(settings), FORMAT], sort_keys=True)
    return cache_dir / "beton" / f"{name}-{split}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.beton"


def write_beton(images: ImageSet, path: Path, settings: BetonSettings) -> None:
    """Writes the images unless the file is there; other processes that want it wait."""
    with made_once(path) as beside:
        if beside is None:
            return
        print(f"writing {len(images):,} images to {path}", flush=True)
        write_watched(images, beside, settings)
        path.with_suffix(".json").write_text(json.dumps(_about(images, settings), indent=2) + "\n")


def _about(images: ImageSet, settings: BetonSettings) -> dict:
    """What a person wants to know of the file; nothing reads it back."""
    labels, counts = np.unique(images.labels, return_counts=True)
    per_label = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    content = {"fingerprint": images.fingerprint(), "images": len(images), "images_per_label": per_label}
    return content | {"settings": asdict(settings), "format": FORMAT}


def check_beton(path: Path, samples: int, labels: np.ndarray | None = None) -> None:
    """Raises UsageError if the file is cut short, damaged or not the expected one.

    With `labels`, (samples,) int64, the file must hold exactly these.

    FFCV's reader thread dies of such a file without a word, and its consumer waits forever.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader

    advice = f"delete it and it is written anew (rm '{path}')"
    try:
        reader = Reader(str(path))
        kinds = [(name, type(field)) for name, field in reader.handlers.items()]
    except Exception as error:  # FFCV raises whatever numpy stumbles over
        raise UsageError(f"{path} is no .beton file of FFCV ({type(error).__name__}): {advice}") from error
    if kinds != [("image", RGBImageField), ("label", IntField)] or reader.num_samples != samples:
        raise UsageError(
            f"{path} holds {reader.num_samples} samples of {[name for name, _ in kinds]}, expected {samples} of "
            f"['image', 'label']: {advice}"
        )
    table = reader.alloc_table
    end = int(reader.header["alloc_table_ptr"])
    whole = end + table.nbytes == path.stat().st_size and len(np.unique(table["sample_id"])) == samples
    if not whole or int((table["ptr"] + table["size"]).max()) > end:
        raise UsageError(f"{path} is cut short or damaged: {advice}")
    image, label = (reader.metadata[name] for name in reader.metadata.dtype.names)
    # FFCV looks up sizes by address and reads whatever lies there: a wrong address is a crash, not an error.
    if not np.array_equal(np.sort(image["data_ptr"]), np.sort(table["ptr"])):
        raise UsageError(f"{path} is damaged, its index does not match its images: {advice}")
    if labels is not None and not np.array_equal(label.reshape(-1), labels):
        raise UsageError(f"{path} holds other labels than expected: {advice}")
