"""FFCV's files: each split is written once, under a name made of its content and settings, and checked before use."""

import hashlib
import json
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data.beton.encoding import BetonSettings
from data.beton.shards import shards_of
from data.beton.writer import write_shards
from data.datasets.prepared import PreparedImages
from data.datasets.source import ImageSet, Split
from infvit.errors import UsageError
from infvit.run.files import atomic_write, create_once

FORMAT = 3
"""Of FFCV's files and the pixels in them; part of the name, so that another version writes its own files."""


def beton_path(images: ImageSet, name: str, split: Split, cache_dir: Path, settings: BetonSettings) -> Path:
    """Returns the path of the file of these images with these settings; for prepared images the prepared file."""
    if isinstance(images, PreparedImages):
        return images.beton
    identity = json.dumps([images.fingerprint(), asdict(settings), FORMAT], sort_keys=True)
    return cache_dir / "beton" / f"{name}-{split}-{hashlib.sha256(identity.encode()).hexdigest()[:16]}.beton"


def write_beton(images: ImageSet, path: Path, settings: BetonSettings) -> None:
    """Writes the images unless the file exists; other processes that need it wait."""
    if path.exists():
        return  # before the lock: the folder may be read-only
    with create_once(path, keep_part=True) as part:
        if part is None:
            return
        print(f"writing {len(images):,} images to {path}", flush=True)
        write_shards(images, part, settings, path.stem, "writing")
        about = {"fingerprint": images.fingerprint(), **describe_labels(images.labels)}
        about |= {"settings": asdict(settings), "format": FORMAT}
        atomic_write(path.with_suffix(".json"), json.dumps(about, indent=2) + "\n")
    shutil.rmtree(shards_of(part))


def describe_labels(labels: np.ndarray) -> dict:
    """Returns the number of images, in all and for each label."""
    found, counts = np.unique(labels, return_counts=True)
    return {"images": len(labels), "images_per_label": dict(zip(found.tolist(), counts.tolist(), strict=True))}


def check_beton(path: Path, samples: int, labels: np.ndarray | None = None) -> None:
    """Raises UsageError if the file is truncated, damaged or not the expected one.

    With `labels`, (samples,) int64, the file must hold exactly these. Without this check FFCV's reading thread dies
    silently on such a file, and its consumer waits forever.
    """
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader

    remedy = f"delete it and it is written again (rm '{path}')"
    try:
        reader = Reader(str(path))
        kinds = [(name, type(field)) for name, field in reader.handlers.items()]
    except Exception as error:  # whatever numpy raises on the bytes
        raise UsageError(f"{path} is not a .beton file of FFCV ({type(error).__name__}): {remedy}") from error
    if kinds != [("image", RGBImageField), ("label", IntField)] or reader.num_samples != samples:
        raise UsageError(
            f"{path} holds {reader.num_samples} samples of {[name for name, _ in kinds]}, expected {samples} of "
            f"['image', 'label']: {remedy}"
        )
    table, end = reader.alloc_table, int(reader.header["alloc_table_ptr"])
    image, label = (reader.metadata[name] for name in reader.metadata.dtype.names)
    whole = end + table.nbytes == path.stat().st_size and int((table["ptr"] + table["size"]).max()) <= end
    # FFCV looks up sizes by address without a check: a wrong address is a crash, not an error.
    if not whole or not np.array_equal(np.sort(image["data_ptr"]), np.unique(table["ptr"])):
        raise UsageError(f"{path} is truncated or damaged: {remedy}")
    if labels is not None and not np.array_equal(label.reshape(-1), labels):
        raise UsageError(f"{path} holds other labels than expected: {remedy}")
