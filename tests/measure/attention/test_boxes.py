"""ImageNet's bounding boxes match the object in the view, and ink boxes surround the ink."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data.datamodule import ImageDataModule
from data.datasets.imagefolder import ImageFolder
from data.torch_loader import TorchReader
from data.view import View
from infvit.errors import UsageError
from infvit.measure.attention.boxes import AnnotatedBoxes, InkBoxes, read_annotation
from tests.measure.attention.imagenet_tree import Box, write_annotation, write_image

WIDE: list[Box] = [(40, 30, 169, 99)]
TWO: list[Box] = [(0, 0, 59, 79), (110, 100, 149, 199)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Three classes, an image each to train on, and to validate: wide, high with two boxes, square."""
    for label in range(3):
        write_image(tmp_path, "train", label, f"train_{label}", (40, 40), [])
    for label, (size, boxes) in enumerate([((200, 120), WIDE), ((150, 220), TWO), ((64, 64), [(16, 16, 47, 47)])]):
        stem = f"ILSVRC2012_val_0000000{label + 1}"
        write_image(tmp_path, "val", label, stem, size, boxes)
        write_annotation(tmp_path, stem, size, boxes)
    return tmp_path


def module(tree: Path, size: int = 56, crop_ratio: float = 0.875) -> ImageDataModule:
    source = ImageFolder(str(tree), str(tree / "cache"))
    view = View(size, crop_ratio, crop_scale=(0.1, 1.0), flip=True)
    options = {"batch_size": 3, "cache_dir": str(tree / "cache"), "seed": 0, "mean": [0.5] * 3, "std": [0.5] * 3}
    return ImageDataModule("imagenet", source, TorchReader(), view, workers=0, **options)


def masks(data: ImageDataModule, root: Path) -> tuple[torch.Tensor, torch.Tensor, AnnotatedBoxes]:
    boxes = AnnotatedBoxes(root, data)
    ((images, _, places),) = data.exact(None, 3)
    return images, boxes(images, places), boxes


@pytest.mark.parametrize("below", ["", "Annotations/CLS-LOC", "Annotations/CLS-LOC/val", "folders of classes"])
def test_boxes_match_the_object_in_the_exact_view_wherever_the_annotations_are(tree, below):
    if below == "folders of classes":
        flat = (tree / "Annotations" / "CLS-LOC" / "val").rename(tree / below)
        for file in map(Path, module(tree).paths):
            (flat / file.parent.name).mkdir()
            (flat / f"{file.stem}.xml").rename(flat / file.parent.name / f"{file.stem}.xml")
    images, inside, boxes = masks(module(tree), tree / below)
    assert inside.shape == (3, 56, 56)
    # The boxes were painted white. Bicubic resizing mixes a pixel or two at an edge.
    white = images.float().mean(1) > 172
    for mask, seen in zip(inside, white, strict=True):
        assert mask.any()
        assert not mask.all()
        wrong = (mask ^ seen).float().mean()
        assert float(wrong) < 0.02
    assert boxes.notes() == []


@pytest.mark.parametrize(("size", "crop_ratio"), [(56, 0.875), (48, 1.0), (33, 0.7)])
def test_the_scaling_is_that_of_the_view_to_a_tenth_of_a_pixel(size, crop_ratio):
    # In a ramp the value of each pixel of the view is its place in the image.
    width, height = 210, 130
    for axis, across in ((0, width), (1, height)):
        ramp = np.arange(across, dtype=np.float32) + 0.5
        values = np.broadcast_to(ramp if axis == 0 else ramp[:, None], (height, width))
        view, resize = View(size, crop_ratio), v2.Resize(int(size / crop_ratio), v2.InterpolationMode.BICUBIC)
        shown = v2.CenterCrop(size)(resize(Image.fromarray(values)))  # the view's resizing and crop, on floats
        at = np.asarray(shown)[size // 2] if axis == 0 else np.asarray(shown)[:, size // 2]
        box = torch.tensor([[60.0, 50.0, 140.0, 90.0]])
        left, right = view.boxes_in_view(box, width, height)[0, [axis, axis + 2]].tolist()
        centres = np.arange(size) + 0.5
        assert np.interp(left, centres, at) == pytest.approx(float(box[0, axis]), abs=0.1 * width / size)
        assert np.interp(right, centres, at) == pytest.approx(float(box[0, axis + 2]), abs=0.1 * width / size)


def test_an_annotation_of_another_size_is_scaled_and_reported(tree):
    _, inside, _ = masks(module(tree), tree)
    halved = [tuple(value // 2 for value in WIDE[0])]
    write_annotation(tree, "ILSVRC2012_val_00000001", (100, 60), halved)
    _, scaled, boxes = masks(module(tree), tree)
    assert float((scaled[0] ^ inside[0]).float().mean()) < 0.03
    assert boxes.notes() == ["1 annotations of another size than their image, whose boxes were scaled"]
    write_annotation(tree, "ILSVRC2012_val_00000001", (0, 0), WIDE)  # as some tools leave it
    _, unsized, boxes = masks(module(tree), tree)
    assert torch.equal(unsized[0], inside[0])
    assert boxes.notes() == []


def test_boxes_are_clipped_and_those_without_an_area_in_the_image_left_out_and_counted(tree):
    _, inside, _ = masks(module(tree), tree)
    odd = [(-50, 30, 169, 99), (300, 10, 400, 50), (80, 90, 20, 95)]  # across the edge, outside, inside out
    write_annotation(tree, "ILSVRC2012_val_00000001", (200, 120), odd)
    _, clipped, boxes = masks(module(tree), tree)
    assert (clipped[0] | inside[0]).sum() == clipped[0].sum()
    assert boxes.notes() == ["2 boxes that are empty or outside of their image, left out"]
    # At the far left of a wide image: in the image, but not in its view.
    write_annotation(tree, "ILSVRC2012_val_00000001", (200, 120), [(0, 0, 9, 119)])
    _, cropped, boxes = masks(module(tree), tree)
    assert not cropped[0].any()
    assert boxes.notes() == []


def test_a_missing_annotation_is_counted_and_none_at_all_is_an_error(tree):
    folder = tree / "Annotations" / "CLS-LOC" / "val"
    (folder / "ILSVRC2012_val_00000002.xml").unlink()
    _, inside, boxes = masks(module(tree), tree)
    assert inside.flatten(1).any(1).tolist() == [True, False, True]
    assert boxes.notes() == ["1 images without an annotation"]
    with pytest.raises(UsageError, match=r"boxes=.*cache holds no annotation of 3 images, such as ILSVRC.*\.xml"):
        AnnotatedBoxes(tree / "cache", module(tree))


def test_one_annotation_is_not_of_two_images(tree):
    first, second = (tree / path for path in map(Path, module(tree).paths[:2]))
    second.rename(second.with_name(first.name))
    with pytest.raises(UsageError, match=r"00000001.xml is of 2 images in different folders: expected <class>/<image>"):
        AnnotatedBoxes(tree, module(tree))


@pytest.mark.parametrize(
    "content", ["", "<annotation><size>", "<annotation><object><bndbox><xmin>a</xmin></bndbox></object></annotation>"]
)
def test_a_file_that_is_not_an_annotation_is_named(tree, content):
    path = tree / "broken.xml"
    path.write_text(content)
    with pytest.raises(UsageError, match=r"broken.xml is not an annotation \(.*\): expected XML with <size>"):
        read_annotation(path)


def test_a_box_includes_its_last_pixel(tmp_path):
    path = write_annotation(tmp_path, "a", (10, 8), [(2, 3, 2, 5), (0, 0, 9, 7)])
    size, boxes = read_annotation(path)
    assert size == (10, 8)
    assert boxes.tolist() == [[2, 3, 3, 6], [0, 0, 10, 8]]


def test_the_ink_box_surrounds_the_bright_pixels():
    images = torch.zeros(3, 3, 9, 9, dtype=torch.uint8)
    images[0, :, 2:5, 3:8] = 200
    images[0, :, 7, 0] = 90  # a smudge
    images[1, :, 4, 4] = 30
    found = InkBoxes()(images, torch.arange(3))
    expected = torch.zeros(3, 9, 9, dtype=torch.bool)
    expected[0, 2:5, 3:8] = expected[1, 4, 4] = True  # and none in a black image
    assert torch.equal(found, expected)
