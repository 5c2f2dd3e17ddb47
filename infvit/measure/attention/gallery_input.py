"""Loads the input of a gallery or figure: models of checkpoints and the images for all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image as Pillow
from torch import Tensor

from infvit.errors import UsageError
from infvit.highres.tokens import normalise
from infvit.image_file import readable
from infvit.measure.attention.blocks import backbone
from infvit.measure.attention.maps import METHODS, offered
from infvit.measure.model_source import LoadedRun, ModelSource, labelled
from infvit.measure.predict import image_files, in_view


class GalleryInput(NamedTuple):
    """Models by label, images as every model's evaluation crops them, uint8 (B, 3, height, width), and their names."""

    networks: dict[str, LoadedRun]
    images: Tensor
    names: list[str]


def gallery_input(
    source: ModelSource,
    checkpoints: str | Sequence[str],
    count: int,
    image: str | None = None,
    allow_huge: bool = False,
) -> GalleryInput:
    """Loads the models of checkpoints with `count` test images of the first one's data, or with given images.

    conf/eval/gallery.yaml explains the arguments.

    Raises:
        UsageError: if there is nothing to show, an image cannot be read, or the models' image sizes differ.
    """
    paths = [checkpoints] if isinstance(checkpoints, str) else list(checkpoints)
    if not paths or count < 1:
        raise UsageError(f"ckpt={paths} and images={count} show nothing: give a checkpoint and at least one image")
    loaded = [source.load(path) for path in paths]
    networks = labelled(loaded)
    sizes = {name: one.view(Pillow.new("RGB", (64, 64))).shape[1:] for name, one in networks.items()}
    if len(set(sizes.values())) > 1:
        each = ", ".join(f"{name} {height} × {width}" for name, (height, width) in sizes.items())
        raise UsageError(f"the models take images of different sizes ({each}): show them one by one")
    if image is None:
        images = loaded[0].data.examples(count)
        return GalleryInput(networks, images, numbered(images))
    files = image_files(Path(image))[:count]
    images = torch.stack([in_view(file, loaded[0], allow_huge) for file in files])
    return GalleryInput(networks, images, [readable(file.name) for file in files])


def numbered(images: Tensor) -> list[str]:
    """Names for images that have none."""
    return [f"image {i}" for i in range(1, len(images) + 1)]


def normalised(network: LoadedRun, images: Tensor) -> Tensor:
    """uint8 (B, 3, height, width) on the CPU → input of the model on its device."""
    device = next(network.model.parameters()).device
    return normalise(images.to(device), torch.float32, network.mean, network.std)


def columns(networks: Mapping[str, LoadedRun], methods: Sequence[str] | None = None) -> dict[str, tuple[str, ...]]:
    """The methods shown for each model: the requested ones that it supports, or all that it supports.

    A model without any is left out; one line names an attention that has no maps.

    Raises:
        UsageError: if a method is unknown, or no model supports it.
    """
    offers = {name: offered(network.model) for name, network in networks.items()}
    for name in [name for name, offer in offers.items() if "attention" not in offer]:
        attention = next(found.name for found in backbone(networks[name].model).operators if found.weighs == "nothing")
        print(f"{name}: {attention} has no weights of tokens, and so no maps", flush=True)
    for method in methods or ():
        if method not in METHODS:
            raise UsageError(f"methods has {method}, which is unknown: choose of {', '.join(METHODS)}")
        if not any(method in offer for offer in offers.values()):
            each = "; ".join(f"{name} offers {', '.join(offer)}" for name, offer in offers.items())
            raise UsageError(f"methods has {method}, which no model here offers: {each}")
    kept = {name: tuple(m for m in methods or offer if m in offer) for name, offer in offers.items()}
    return {name: shown for name, shown in kept.items() if shown}
