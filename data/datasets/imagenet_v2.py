"""ImageNet-V2 (arXiv:1902.10811): new test images for the classes of ImageNet-1K, for evaluation only."""

from pathlib import Path

from data.datasets.image_files import NO_IMAGES, class_folders, image_sets, images_in, some
from data.datasets.source import Source
from infvit.class_names import synsets
from infvit.errors import UsageError, expect

FOLDERS = {
    "matched-frequency": "imagenetv2-matched-frequency-format-val",
    "threshold-0.7": "imagenetv2-threshold0.7-format-val",
    "top-images": "imagenetv2-top-images-format-val",
}
"""The folder in each variant's archive."""


class ImageNetV2(Source):
    """One variant of ImageNet-V2; it has images to evaluate on and none to train on.

    Folders named 0 to 999 are labels as numbers: sorted as text, 100 would be the third class (ImageNetV2 issues 4 and
    10). In the distribution whose folders are synsets, a folder's label is its position among ImageNet-1K's classes.

    Args:
        root: the folder that holds the variant's folder.
        cache_dir: folder of the stored fingerprints.
        variant: "matched-frequency", "threshold-0.7" or "top-images".
        skip_bad: leave out images that cannot be decoded, with a warning, instead of stopping.

    Raises:
        UsageError: an unknown variant, no such folder, class folders that are not the 1,000, a corrupt image.
    """

    def __init__(self, root: str, cache_dir: str, variant: str = "matched-frequency", skip_bad: bool = False) -> None:
        named = f"data.variant={variant} is not a variant of ImageNet-V2"
        expect(variant in FOLDERS, named, f"one of {', '.join(FOLDERS)}")
        folder = Path(root).expanduser().resolve() / FOLDERS[variant]
        if not folder.is_dir():
            archive = FOLDERS[variant].removesuffix("-format-val")
            raise UsageError(
                f"no images for data=imagenet_v2: the folder {folder} does not exist; unpack {archive}.tar.gz "
                "(huggingface.co/datasets/vaishaal/ImageNetV2) there, or give its place by data.root=DIR"
            )
        classes = synsets()
        found = {"val": images_in(folder, in_order_of_labels(class_folders(folder), classes, folder))}
        sets = image_sets(folder.parent, found, cache_dir, "imagenet_v2", skip_bad)
        super().__init__(classes, NO_IMAGES, sets["val"])


def in_order_of_labels(names: list[str], classes: list[str], folder: Path) -> list[str]:
    """Returns the names of the class folders in the order of their labels; `folder` is for messages."""
    numbers = [str(label) for label in range(len(classes))]
    expected = max(numbers, classes, key=lambda layout: len(set(layout).intersection(names)))
    wrong = sorted(set(names) ^ set(expected))
    if wrong:
        raise UsageError(
            f"{folder} has {len(names)} class folders, expected all of 0 to {len(classes) - 1}, or all synsets of "
            f"ImageNet-1K; missing or not one of them: {some(wrong)}: unpack its archive again"
        )
    return expected
