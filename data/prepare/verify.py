"""Compares a sample of a written file with the originals."""

import json
from dataclasses import replace

import numpy as np
from PIL import Image

from data.beton.encoding import encode_all
from data.beton.files import check_beton
from data.datasets.prepared import PreparedImages, PreparedOriginals
from data.prepare.job import Job
from infvit.errors import UsageError

SAMPLE = 256
"""Images that are compared."""

TOLERANCE = 8
"""Largest mean difference of a JPEG from its original, both shrunk to 16 × 16, of 255; that of raw pixels is 0."""


def verify(job: Job) -> None:
    """Prints the largest difference of a sample of the file from the originals; kept originals must be equal.

    Raises:
        UsageError: the file is damaged, or an image differs from its original.
    """
    left_out = {int(i) for i in json.loads(job.path.with_suffix(".json").read_text())["left_out"]}
    kept = np.array([i for i in range(len(job.images)) if i not in left_out])
    check_beton(job.path, len(kept), job.images.labels[kept])
    chosen = [[i for i in piece if i not in left_out] for piece in job.images.sample(SAMPLE)]
    written, is_jpg, worst, count = PreparedImages(job.path), job.settings.mode == "jpg", 0.0, 0
    originals = PreparedOriginals(job.path) if job.split == "val" else None
    for piece in encode_all(job.images, replace(job.settings, mode="raw"), chosen):
        for one in piece:
            if one.problem:
                raise UsageError(f"{job.images.title(one.sample)} cannot be compared with {job.path}: {one.problem}")
            source = np.frombuffer(one.content, np.uint8).reshape(one.height, one.width, 3)
            index = int(np.searchsorted(kept, one.sample))
            difference = _difference(np.asarray(written[index][0]), source, is_jpg)
            if originals is not None and originals.read(index) != job.images.read(one.sample):
                difference = 255.0
            if difference > (TOLERANCE if is_jpg else 0):
                raise UsageError(
                    f"{job.path} differs from {job.images.title(one.sample)} by {difference:.1f} of 255: remove the "
                    "file and prepare it again"
                )
            worst, count = max(worst, difference), count + 1
    print(f"verified {count:,} images of {job.path.name}: they differ by at most {worst:.1f} of 255", flush=True)


def _difference(pixels: np.ndarray, source: np.ndarray, is_jpg: bool) -> float:
    if pixels.shape != source.shape:
        return 255.0
    if not is_jpg:
        return float(np.abs(pixels.astype(int) - source).max())
    small = [np.asarray(Image.fromarray(a).resize((16, 16), Image.Resampling.BOX), dtype=int) for a in (pixels, source)]
    return float(np.abs(small[0] - small[1]).mean())
