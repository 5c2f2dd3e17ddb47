"""Readable names of classes."""

from collections import Counter
from collections.abc import Sequence
from functools import cache

from timm.data import ImageNetInfo


def readable_names(classes: Sequence[str]) -> list[str]:
    """Returns ImageNet's synsets as "description (synset)", and other names as they are."""
    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())
    return [f"{info.label_name_to_description(c)} ({c})" if c in known else c for c in classes]


def synsets() -> list[str]:
    """Returns the synsets of ImageNet-1K's classes in the order of their labels, which is alphabetical."""
    return list(ImageNetInfo("imagenet-1k").label_names())


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether `classes` are those of ImageNet-1K in the order of its labels."""
    return list(classes) == synsets()


def places(names: Sequence[str], classes: Sequence[str]) -> list[int | None]:
    """Returns the index in `classes` of each name; None for one that is not there, or there more than once.

    A synset of ImageNet-1K and timm's description of it ("tench, Tinca tinca") are one name.
    """
    wanted, known = ([_described().get(name, name) for name in given] for given in (names, classes))
    once = Counter(wanted) | Counter(known)  # the larger count of each
    index = {name: i for i, name in enumerate(known) if once[name] == 1}
    return [index.get(name) for name in wanted]


@cache
def _described() -> dict[str, str]:
    """ImageNet-1K's synsets by their descriptions, without the one that two have, crane."""
    info = ImageNetInfo("imagenet-1k")
    described = {name: info.label_name_to_description(name) for name in info.label_names()}
    counts = Counter(described.values())
    return {words: synset for synset, words in described.items() if counts[words] == 1}
