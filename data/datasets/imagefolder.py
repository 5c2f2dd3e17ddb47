"""Any tree of images: root/train/<class>/** and root/val/<class>/**; val alone is enough to evaluate."""

from collections.abc import Sequence
from pathlib import Path

from data.datasets.image_files import NO_IMAGES, common_classes, image_sets, images_in, some
from data.datasets.source import Source
from infvit.errors import UsageError


class ImageFolder(Source):
    """A tree of images with one folder per class, the same classes in train and val; without train for evaluation only.

    Args:
        root: the tree.
        cache_dir: folder of the stored fingerprints.
        name: of the data set, for messages.
        num_classes: expected number of classes; None accepts any.
        known_classes: names that a class folder may have; None accepts any.
        skip_bad: leave out images that cannot be decoded, with a warning, instead of stopping.
        how_to_prepare: advice in the error message if the tree does not exist.

    Raises:
        UsageError: missing or empty folders, classes that differ, a wrong number of classes or an unknown one, a
            corrupt image.
    """

    def __init__(
        self,
        root: str,
        cache_dir: str,
        name: str = "imagefolder",
        num_classes: int | None = None,
        known_classes: Sequence[str] | None = None,
        skip_bad: bool = False,
        how_to_prepare: str = "",
    ) -> None:
        tree = Path(root).expanduser().resolve()
        if not (tree / "val").is_dir():
            advice = how_to_prepare or "expected train/<class>/* and val/<class>/* in data.root=DIR"
            raise UsageError(f"no images for data={name}: the folder {tree / 'val'} does not exist; {advice}")
        splits = [split for split in ("train", "val") if (tree / split).is_dir()]
        first, classes = tree / splits[0], common_classes(tree, splits)
        if num_classes is not None and len(classes) != num_classes:
            raise UsageError(
                f"{first} has {len(classes)} class folders ({some(classes)}), data.num_classes={num_classes} expects "
                f"{num_classes}: give data.num_classes={len(classes)} or the right data.root"
            )
        strange = [] if known_classes is None else sorted(set(classes) - set(known_classes))
        if strange:
            raise UsageError(
                f"{first} has class folders that are not classes of {name}: {some(strange)}; expected "
                f"names such as {known_classes[0]}, or data=imagefolder"  # type: ignore[index]
            )
        found = {split: images_in(tree / split, classes) for split in splits}
        sets = image_sets(tree, found, cache_dir, name, skip_bad)
        super().__init__(classes, sets.get("train", NO_IMAGES), sets["val"])
