"""What a gallery or a figure shows: the models of checkpoints, and the images that all of them see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image as Pillow
from torch import Tensor

from infvit.errors import UsageError
from infvit.highres.images import decode
from infvit.highres.tokens import normalise
from infvit.measure.attention.maps import METHODS, offered
from infvit.measure.model_source import LoadedRun, ModelSource
from infvit.measure.predict import image_files

WORDS = {
    "attention": "What the class token, or the mean of all patches without one, weighs the patches with.",
    "rollout": "The same through this block and all before it, half of each step staying (Abnar and Zuidema).",
    "katz_in": "Katz centrality: the discounted paths of the walk on the tokens that arrive at a token.",
    "katz_out": "Katz centrality: the discounted paths that leave a token.",
    "visits": "Expected visits of a walk from the class token, or from a patch at random, before it is absorbed.",
    "eigenvector": "The left Perron vector of the weights: where a walk that is never absorbed is found in the end.",
    "weights": "The one weight of each token that Linear-InfSA gives it for all tokens.",
    "gradient_attention": "The weights times how the predicted class's logit grows with them, where it grows.",
    "random": "Uniform numbers: the floor that a map must beat.",
}
"""Each of `METHODS` for a reader who sees its maps."""


class GalleryInput(NamedTuple):
    """Models and images that they are shown with.

    Attributes:
        networks: each under the name that it is shown by.
        images: uint8 (B, 3, height, width), as every network's evaluation crops them.
        names: of the images.
    """

    networks: dict[str, LoadedRun]
    images: Tensor
    names: list[str]


def exhibit(
    source: ModelSource,
    checkpoints: str | Sequence[str],
    count: int,
    image: str | None = None,
    allow_huge: bool = False,
) -> GalleryInput:
    """The models of checkpoints with `count` test images of the first one's data, or with own images.

    Args:
        image: a file, or a folder of which the first `count` images are taken.
        allow_huge: decode also what is larger than Pillow's limit against decompression bombs.

    Raises:
        UsageError: if nothing is to be shown, an image cannot be read, or the models take images of different sizes.
    """
    paths = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    if not paths or count < 1:
        raise UsageError(f"ckpt={paths} and images={count} show nothing: give a checkpoint and at least one image")
    if image is None:
        loaded = [source.load(path) for path in paths]
        images = loaded[0].data.examples(count)
        networks = _named(loaded, paths)
        return GalleryInput(networks, images, [f"image {i}" for i in range(1, len(images) + 1)])
    networks = _named([*map(source.load, paths)], paths)
    files = image_files(Path(image))[:count]
    view = next(iter(networks.values())).view
    pixels = [decode(file, allow_huge).permute(1, 2, 0).numpy() for file in files]
    return GalleryInput(
        networks, torch.stack([view(Pillow.fromarray(one)) for one in pixels]), [file.name for file in files]
    )


def _named(loaded: list[LoadedRun], checkpoints: list[str]) -> dict[str, LoadedRun]:
    """Each by its name, shared ones with the folder of their run too, and a number if that is not enough."""
    names = [network.name for network in loaded]
    runs = [Path(path).absolute().parent.parent.name for path in checkpoints]
    told = [f"{name} ({run})" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    told = [f"{name} {told[:i].count(name) + 1}" if told.count(name) > 1 else name for i, name in enumerate(told)]
    sizes = [network.view(Pillow.new("RGB", (64, 64))).shape[1:] for network in loaded]
    if len(set(sizes)) > 1:
        each = ", ".join(f"{name} {size[0]} × {size[1]}" for name, size in zip(told, sizes, strict=True))
        raise UsageError(f"the models take images of different sizes ({each}): show them one by one")
    return dict(zip(told, loaded, strict=True))


def normalised(network: LoadedRun, images: Tensor) -> Tensor:
    """uint8 (B, 3, height, width) on the CPU → what the network's model takes, where that is."""
    device = next(network.model.parameters()).device
    return normalise(images.to(device), torch.float32, network.mean, network.std)


def columns(networks: Mapping[str, LoadedRun], methods: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The methods that each model is shown with: those asked for as far as it offers them, or all that it offers.

    A model that offers none of them is left out.

    Raises:
        UsageError: if a method is unknown, or no model offers it.
    """
    offers = {name: offered(network.model) for name, network in networks.items()}
    for method in methods or ():
        if method not in METHODS:
            raise UsageError(f"methods has {method}, which is unknown: choose of {', '.join(METHODS)}")
        if not any(method in offer for offer in offers.values()):
            each = "; ".join(f"{name} offers {', '.join(offer)}" for name, offer in offers.items())
            raise UsageError(f"methods has {method}, which no model here offers: {each}")
    kept = {name: tuple(m for m in methods or offer if m in offer) for name, offer in offers.items()}
    return {name: shown for name, shown in kept.items() if shown}
