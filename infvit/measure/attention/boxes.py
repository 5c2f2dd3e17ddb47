"""Bounding boxes of the objects in images: ImageNet's published ones, or the box around the ink."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePath
from xml.etree import ElementTree

import torch
from torch import Tensor

from infvit.errors import UsageError, expect
from infvit.measure.model_source import EvaluationData

FOLDERS = ("", "val", "CLS-LOC/val", "Annotations/CLS-LOC/val", "ILSVRC/Annotations/CLS-LOC/val")
"""Folders of the validation annotations in ImageNet's unpacked archives."""


class InkBoxes:
    """The box around all pixels that are at least half as bright as an image's brightest: for white ink on black."""

    name = "the ink's own"

    def __call__(self, images: Tensor, places: Tensor) -> Tensor:  # noqa: ARG002
        """Which pixels are in the box: uint8 (B, 3, H, W) → bool (B, H, W)."""
        grey = images.float().mean(1)
        peak = grey.amax((1, 2), keepdim=True)
        ink = (grey >= peak / 2) & (peak > 0)
        return _spanned(ink.any(1))[:, None, :] & _spanned(ink.any(2))[:, :, None]

    def notes(self) -> list[str]:
        return []


class AnnotatedBoxes:
    """ImageNet's XML annotations (PASCAL VOC's format), all boxes of an image together.

    If an annotation has another size than its image, its boxes are scaled to the image. An image without an annotation,
    or without a box of positive area inside the image, has no pixel in a box.

    Args:
        root: the folder of the archive, or one of `FOLDERS` in it; files <image>.xml, or <class>/<image>.xml.
        data: images that are files, in folders of their classes.

    Raises:
        UsageError: if no image has an annotation there, or two have the same; later, for a file that is not one.
    """

    name = "ImageNet's"

    def __init__(self, root: str | Path, data: EvaluationData) -> None:
        folders = [folder for name in FOLDERS if (folder := Path(root).expanduser() / name).is_dir()]
        self.data = data
        self.found = [_annotation_of(PurePath(path), folders) for path in data.paths]
        if not any(self.found):
            example = PurePath(data.paths[0]).stem
            raise UsageError(
                f"boxes={root} holds no annotation of {len(data.paths):,} images, such as {example}.xml: give the "
                f"folder that ImageNet's annotations were unpacked to (it is looked for there and in {FOLDERS[-1]})"
            )
        ((path, count),) = Counter(filter(None, self.found)).most_common(1)
        expect(count == 1, f"{path} is of {count:,} images in different folders", "<class>/<image>.xml")
        self.missing = self.rescaled = self.empty = 0

    def __call__(self, images: Tensor, places: Tensor) -> Tensor:
        """Which pixels are in a box: uint8 (B, 3, H, W), their indices in the data set (B,) → bool (B, H, W)."""
        height, width = images.shape[-2:]
        x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
        inside = torch.zeros(len(images), height, width, dtype=torch.bool)
        for mask, place in zip(inside, places.tolist(), strict=True):
            left, top, right, bottom = self._in_view(place)[:, :, None].unbind(1)
            columns, rows = (left <= x) & (x < right), (top <= y) & (y < bottom)  # of each box
            mask |= (rows[:, :, None] & columns[:, None, :]).any(0)
        return inside.to(images.device)

    def notes(self) -> list[str]:
        """Problems with the boxes so far and how they were handled."""
        counts = {
            "images without an annotation": self.missing,
            "annotations of another size than their image, whose boxes were scaled": self.rescaled,
            "boxes that are empty or outside of their image, left out": self.empty,
        }
        return [f"{count:,} {what}" for what, count in counts.items() if count]

    def _in_view(self, place: int) -> Tensor:
        """The boxes of an image in its view, (n, 4)."""
        path = self.found[place]
        if path is None:
            self.missing += 1
            return torch.zeros(0, 4)
        annotated, boxes = read_annotation(path)
        width, height = self.data.original_size(place)
        if all(annotated) and annotated != (width, height):
            boxes = boxes * torch.tensor([width / annotated[0], height / annotated[1]]).repeat(2)
            self.rescaled += 1
        boxes = boxes.clamp_min(0).minimum(torch.tensor([width, height, width, height]))
        real = (boxes[:, :2] < boxes[:, 2:]).all(1)
        self.empty += int((~real).sum())
        return self.data.boxes_in_view(boxes[real], width, height)


def read_annotation(path: Path) -> tuple[tuple[int, int], Tensor]:
    """Reads one XML file: the (width, height) of the annotated image, 0 if missing, and its boxes (n, 4).

    Boxes are the edges of the pixels from `xmin` to `xmax` and `ymin` to `ymax`, both included.

    Raises:
        UsageError: if the file is not an annotation.
    """
    try:
        root = ElementTree.parse(path).getroot()
        width, height = (int(root.findtext(f"size/{name}") or 0) for name in ("width", "height"))
        boxes = [
            [float(box.findtext(name) or "") for name in ("xmin", "ymin", "xmax", "ymax")]
            for box in root.iterfind("object/bndbox")
        ]
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise UsageError(
            f"{path} is not an annotation ({error}): expected XML with <size> and <object><bndbox><xmin>..., "
            "as ImageNet's"
        ) from error
    edges = torch.tensor(boxes).view(-1, 4)
    edges[:, 2:] += 1
    return (width, height), edges


def _annotation_of(file: PurePath, folders: Sequence[Path]) -> Path | None:
    """The annotation of an image, in one of the folders or, rather, in a folder of its class there."""
    name = f"{file.stem}.xml"
    candidates = (folder / part for part in (f"{file.parent.name}/{name}", name) for folder in folders)
    return next((path for path in candidates if path.is_file()), None)


def _spanned(marked: Tensor) -> Tensor:
    """Marks all entries between the first and the last marked one: bool (B, n) → bool (B, n)."""
    return marked.cummax(1).values & marked.flip(1).cummax(1).values.flip(1)
