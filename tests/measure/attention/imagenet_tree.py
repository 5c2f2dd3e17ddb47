"""A folder in ImageNet's exact layout: JPEGs, synsets, and XML annotations as in its archives."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.datasets.imagenet_v2 import synsets

Box = tuple[int, int, int, int]
SYNSETS = synsets()


def write_annotation(folder: Path, stem: str, size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    """Annotations/CLS-LOC/val/<stem>.xml; `size` is (width, height), a box (xmin, ymin, xmax, ymax)."""
    path = folder / "Annotations" / "CLS-LOC" / "val" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(
        f"<object><bndbox><xmin>{left}</xmin><ymin>{top}</ymin><xmax>{right}</xmax><ymax>{bottom}</ymax></bndbox></object>"
        for left, top, right, bottom in boxes
    )
    shape = f"<size><width>{size[0]}</width><height>{size[1]}</height></size>"
    path.write_text(f"<annotation>{shape}{objects}</annotation>")
    return path


def write_image(tree: Path, split: str, label: int, stem: str, size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    """<split>/<synset>/<stem>.JPEG: a grey image, white where a box is."""
    image = Image.new("RGB", size, (90, 90, 90))
    for left, top, right, bottom in boxes:
        image.paste((255, 255, 255), (left, top, right + 1, bottom + 1))
    path = tree / split / SYNSETS[label] / f"{stem}.JPEG"
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, quality=95, subsampling=0)
    return path
