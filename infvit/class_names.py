"""Readable names of classes."""

from collections.abc import Sequence

from timm.data import ImageNetInfo


def readable_names(classes: Sequence[str]) -> list[str]:
    """Returns ImageNet's synsets as "description (synset)", and other names as they are."""
    info = ImageNetInfo("imagenet-22k")
    known = set(info.label_names())
    return [f"{info.label_name_to_description(c)} ({c})" if c in known else c for c in classes]


def is_imagenet(classes: Sequence[str]) -> bool:
    """Whether `classes` are the synsets of ImageNet-1K in the order of its labels."""
    return list(classes) == list(ImageNetInfo("imagenet-1k").label_names())
