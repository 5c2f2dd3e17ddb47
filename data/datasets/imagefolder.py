"""Any tree of images: root/train/<class>/** and root/val/<class>/**; val alone is enough to evaluate."""

from collections.abc import Sequence
from pathlib import Path

from data.datasets.image_files import ImageFiles, common_classes, image_sets, images_in, some
from data.datasets.source import ImageSet, Split
from infvit.errors import UsageError


class ImageFolder:
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
        self.name, self.root = name, Path(root).expanduser().resolve()
        if not (self.root / "val").is_dir():
            advice = how_to_prepare or "expected train/<class>/* and val/<class>/* in data.root=DIR"
            raise UsageError(f"no images for data={name}: the folder {self.root / 'val'} does not exist; {advice}")
        splits = [split for split in ("train", "val") if (self.root / split).is_dir()]
        first = self.root / splits[0]
        self.classes = common_classes(self.root, splits)
        if num_classes is not None and len(self.classes) != num_classes:
            raise UsageError(
                f"{first} has {len(self.classes)} class folders ({some(self.classes)}), "
                f"data.num_classes={num_classes} expects {num_classes}: give data.num_classes={len(self.classes)} "
                "or the right data.root"
            )
        strange = [] if known_classes is None else sorted(set(self.classes) - set(known_classes))
        if strange:
            raise UsageError(
                f"{first} has class folders that are not classes of {name}: {some(strange)}; expected "
                f"names such as {known_classes[0]}, or data=imagefolder"  # type: ignore[index]
            )
        found = {split: images_in(self.root / split, self.classes) for split in splits}
        self._sets = {"train": ImageFiles(self.root, [], "")} | image_sets(self.root, found, cache_dir, name, skip_bad)

    def split(self, split: Split) -> ImageSet:
        """Returns the images of one split, sorted by class and path; an empty training set if there is no train/."""
        return self._sets[split]
