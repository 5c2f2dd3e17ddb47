"""A folder in ImageNet's exact layout: JPEGs, synsets, and XML annotations as in its archives."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from data.datasets.imagenet_v2 import synsets

Box = tuple[int, int, int, int]
SYNSETS = synsets()

OBJECT = """\t<object>
\t\t<name>{name}</name>
\t\t<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>
\t</object>
"""
ANNOTATION = """<annotation>
\t<folder>val</folder>
\t<filename>{stem}</filename>
\t<size><width>{width}</width><height>{height}</height><depth>3</depth></size>
{objects}</annotation>
"""


def write_annotation(folder: Path, stem: str, name: str, size: tuple[int, int], boxes: Sequence[Box]) -> Path:
    """Annotations/CLS-LOC/val/<stem>.xml; `size` is (width, height), a box (xmin, ymin, xmax, ymax)."""
    path = folder / "Annotations" / "CLS-LOC" / "val" / f"{stem}.xml"
    path.parent.mkdir(parents=True, exist_ok=True)
    objects = "".join(OBJECT.format(*box, name=name) for box in boxes)
    path.write_text(ANNOTATION.format(stem=stem, width=size[0], height=size[1], objects=objects))
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
