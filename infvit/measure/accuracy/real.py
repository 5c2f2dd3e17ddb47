"""ReaL labels (arXiv:2006.07159): every class that is on a validation image of ImageNet, as people found anew."""

from collections.abc import Sequence
from functools import cache
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from timm.data import RealLabelsImagenet

from infvit.class_names import is_imagenet
from infvit.measure.accuracy.records import Records


class Real(NamedTuple):
    """What records score by ReaL labels.

    Attributes:
        labelled: (n,) bool: images that have such labels; the others, where no class was found fit, are left out.
        top1, top5: (n,) bool: whether the prediction, or one of the five likeliest classes, is among them.
    """

    labelled: np.ndarray
    top1: np.ndarray
    top5: np.ndarray

    @classmethod
    def of(cls, records: Records, files: Sequence[str], classes: Sequence[str]) -> "Real | None":
        """By the names of the images' files, `files[index]`; None where the images are not ImageNet's validation.

        Args:
            records: of the evaluation.
            files: of all images of the set.
            classes: their names, in order; the labels are those of ImageNet-1K's synsets.
        """
        if not is_imagenet(classes) or not files:
            return None
        labels = [_labels().get(PurePath(files[index]).name, []) for index in records.index]
        if not any(labels):
            return None
        pairs = zip(records.top5.tolist(), labels, strict=True)
        hits = np.array([[label in known for label in five] for five, known in pairs])
        return cls(np.array([len(known) > 0 for known in labels]), hits[:, 0], np.any(hits, axis=1))


@cache
def _labels() -> dict[str, list[int]]:
    """By the name of the file; timm, which carries them, asks for as many file names as there are images."""
    return RealLabelsImagenet([""] * 50_000).real_labels
