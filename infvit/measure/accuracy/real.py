"""ReaL labels (arXiv:2006.07159): all classes that annotators found on each validation image of ImageNet."""

from collections.abc import Sequence
from functools import cache
from pathlib import PurePath
from typing import NamedTuple

import numpy as np
from timm.data import RealLabelsImagenet

from infvit.class_names import is_imagenet
from infvit.measure.accuracy.records import Records


class Real(NamedTuple):
    """The score of records by ReaL labels.

    Attributes:
        labelled: (n,) bool: images that have ReaL labels; annotators found no class for the others.
        top1, top5: (n,) bool: whether the prediction, or one of the five likeliest classes, is among them.
    """

    labelled: np.ndarray
    top1: np.ndarray
    top5: np.ndarray

    @classmethod
    def of(cls, records: Records, files: Sequence[str], classes: Sequence[str]) -> "Real | None":
        """Looks up the images by their file names, `files[index]`; None unless they are ImageNet's for validation."""
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
    """Labels by file name, from timm, whose class requires as many file names as there are images."""
    return RealLabelsImagenet([""] * 50_000).real_labels
