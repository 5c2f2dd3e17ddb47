"""What a gallery or a figure shows: the models of checkpoints, and the images that all of them see."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image as Pillow
from torch import Tensor

from infvit.errors import UsageError
from infvit.highres.images import decode
from infvit.measure.attention.maps import METHODS, offered
from infvit.measure.predict import image_files
from infvit.measure.subjects import Network, Subjects

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


class Exhibit(NamedTuple):
    """Models and images that they are shown with.

    Attributes:
        networks: each under the name that it is shown by.
        images: uint8 (B, 3, height, width), as every network's evaluation crops them.
        names: of the images.
    """

    networks: dict[str, Network]
    images: Tensor
    names: list[str]


def exhibit(
    subjects: Subjects, checkpoints: str | Sequence[str], count: int, image: str | None = None, allow_huge: bool = False
) -> Exhibit:
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
    loaded = [subjects.network(path) for path in paths]
    networks = dict(zip(_distinct([network.name for network in loaded], paths), loaded, strict=True))
    sizes = {name: tuple(network.view(Pillow.new("RGB", (64, 64))).shape[1:]) for name, network in networks.items()}
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{name} {height} × {width}" for name, (height, width) in sizes.items())
        raise UsageError(f"the models take images of different sizes ({each}): show them one by one")
    if image is None:
        data: Any = subjects.trained(paths[0]).data
        images = data.examples(count)
        return Exhibit(networks, images, [f"image {i}" for i in range(1, len(images) + 1)])
    files = image_files(Path(image))[:count]
    pixels = [Pillow.fromarray(decode(file, allow_huge).permute(1, 2, 0).numpy()) for file in files]
    images = torch.stack([loaded[0].view(one) for one in pixels])
    return Exhibit(networks, images, [file.name for file in files])


def _distinct(names: list[str], checkpoints: list[str]) -> list[str]:
    """The names, shared ones with the folder of their run, and a number if that is not enough."""
    runs = [Path(path).absolute().parent.parent.name for path in checkpoints]
    told = [f"{name} ({run})" if names.count(name) > 1 else name for name, run in zip(names, runs, strict=True)]
    return [f"{name} {told[:i].count(name) + 1}" if told.count(name) > 1 else name for i, name in enumerate(told)]


def normalised(network: Network, images: Tensor) -> Tensor:
    """uint8 (B, 3, height, width) → what the network's model takes."""
    mean, std = (torch.tensor(list(values)).view(-1, 1, 1) for values in (network.mean, network.std))
    return (images.float() / 255 - mean) / std


def columns(networks: Mapping[str, Network], methods: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
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
