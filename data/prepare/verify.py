"""Reads a sample of a written file as FFCV reads it, and compares with the originals."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from data.beton.encoding import encode_all
from data.beton.files import check_beton
from data.prepare.expect import spread
from data.prepare.job import Job
from infvit.errors import UsageError

SAMPLE = 256
"""Images that are compared."""

TOLERANCE = 8
"""Largest mean difference of a JPEG from its original, both shrunk to 16 × 16, of 255; that of raw pixels is 0."""


def verify(job: Job) -> None:
    """Says how far a sample of the file is from the originals.

    Raises:
        UsageError: the file is damaged, or an image is not the one it should be.
    """
    left_out = {int(i) for i in json.loads(job.path.with_suffix(".json").read_text())["left_out"]}
    kept = np.array([i for i in range(len(job.images)) if i not in left_out])
    check_beton(job.path, len(kept), job.images.labels[kept])
    chosen = [[i for i in piece if i not in left_out] for piece in spread(job.images, SAMPLE)]
    file, worst, count = _Written(job.path), 0.0, 0
    for piece in encode_all(job.images, replace(job.settings, mode="raw"), chosen):
        for one in piece:
            if one.problem:
                raise UsageError(f"{job.images.title(one.sample)} cannot be compared with {job.path}: {one.problem}")
            source = np.frombuffer(one.content, np.uint8).reshape(one.height, one.width, 3)
            pixels, is_jpg = file.image(int(np.searchsorted(kept, one.sample)))
            far = _difference(pixels, source, is_jpg)
            if far > (TOLERANCE if is_jpg else 0):
                raise UsageError(
                    f"{job.path} differs from {job.images.title(one.sample)} by {far:.1f} of 255: remove the file and "
                    "prepare it again"
                )
            worst, count = max(worst, far), count + 1
    print(f"verified {count:,} images of {job.path.name}: they differ by at most {worst:.1f} of 255", flush=True)


class _Written:
    def __init__(self, path: Path) -> None:
        from ffcv.reader import Reader

        reader = Reader(str(path))
        self.about = reader.metadata[reader.metadata.dtype.names[0]]
        self.sizes = dict(zip(reader.alloc_table["ptr"].tolist(), reader.alloc_table["size"].tolist(), strict=True))
        self.content = np.memmap(path, np.uint8, "r")

    def image(self, sample: int) -> tuple[np.ndarray, bool]:
        """(h, w, 3) uint8 as FFCV decodes it, and whether it is a JPEG."""
        from ffcv.fields.rgb_image import IMAGE_MODES
        from ffcv.libffcv import imdecode

        mode, width, height, start = self.about[sample].tolist()
        content = self.content[start : start + self.sizes[start]]
        pixels = np.zeros((height, width, 3), np.uint8)
        if mode != IMAGE_MODES["jpg"]:
            return content.reshape(pixels.shape), False
        imdecode(np.ascontiguousarray(content), pixels, height, width, height, width, 0, 0, 1, 1, False, False)
        return pixels, True


def _difference(pixels: np.ndarray, source: np.ndarray, is_jpg: bool) -> float:
    if pixels.shape != source.shape:
        return 255.0
    if not is_jpg:
        return float(np.abs(pixels.astype(int) - source).max())
    small = [np.asarray(Image.fromarray(a).resize((16, 16), Image.Resampling.BOX), dtype=int) for a in (pixels, source)]
    return float(np.abs(small[0] - small[1]).mean())
