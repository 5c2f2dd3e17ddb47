"""The gallery: attention maps of models in one self-contained HTML page that works offline."""

import base64
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from infvit.class_names import readable_names
from infvit.errors import UsageError
from infvit.measure.attention.blocks import backbone
from infvit.measure.attention.gallery_input import GalleryInput, columns, normalised
from infvit.measure.attention.heat import HEAT, OPACITY, inlined, picture
from infvit.measure.attention.maps import METHODS, layer_maps, token_map
from infvit.measure.model_source import LoadedRun, ModelSource
from infvit.tables.html import environment

TEMPLATE = "gallery.html.jinja"
STRONGEST = 5
"""Number of neighbours listed for a token."""

LOWEST = 1e-16
"""Smallest share of a map's largest value that `codes` distinguishes from 0."""

MOST_BYTES = 20_000_000
"""Largest size of a page; browsers take seconds to open more."""

SMALL = 96
"""Largest side in pixels of images that are stored losslessly."""


def gallery(
    source: ModelSource, out: Path, shown: Callable[[ModelSource], GalleryInput], methods: Sequence[str] | None
) -> None:
    """Writes gallery.html and prints its path; conf/eval/gallery.yaml explains the arguments."""
    file = write_gallery(out / "gallery.html", shown(source), methods)
    print(f"{file}  {file.stat().st_size / 1e6:.1f} MB, opens in any browser")


def write_gallery(file: Path, content: GalleryInput, methods: Sequence[str] | None = None) -> Path:
    """Writes the page: images in rows, models and their methods in columns, a slider for the block and the opacity.

    The page has every block and all of them together: B × (L + 1) maps per method, and the `STRONGEST` neighbours of
    each token; 0.57 MB for a model of 4 blocks, 8 photographs of 14 × 14 tokens and 8 methods.

    Raises:
        UsageError: if a method is unknown or no model supports it, a map is not finite, or the page would be too large.
    """
    networks, images, names = content
    shown = columns(networks, methods)
    small = max(images.shape[2:]) <= SMALL
    pictures = [inlined(picture(image), "png" if small else "jpeg") for image in images]
    models: list[dict[str, Any]] = []
    size = sum(map(len, pictures))
    for name, offer in shown.items():
        models.append(_model(name, networks[name], normalised(networks[name], images), offer))
        size += models[-1].pop("bytes")
        if size > MOST_BYTES:
            raise UsageError(
                f"{file} would be larger than {MOST_BYTES / 1e6:.0f} MB: give fewer images ({len(images)}), methods "
                f"({max(map(len, shown.values()))}) or checkpoints ({len(shown)})"
            )
    page = (
        environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            title=f"What {_listed(list(shown))} {'looks' if len(shown) == 1 else 'look'} at",
            models=models,
            pictures=list(zip(names, pictures, strict=True)),
            aspect=f"{images.shape[3]} / {images.shape[2]}",
            pixelated=small,
            blocks=max(model["depth"] for model in models),
            opacity=round(100 * OPACITY),
            words={method: METHODS[method] for methods in shown.values() for method in methods},
            heat=", ".join(f"rgb({r} {g} {b})" for r, g, b in HEAT),
            content={"models": models, "heat": HEAT, "lowest": LOWEST, "strongest": STRONGEST, "names": list(names)},
        )
    )
    file.write_text(page, encoding="utf-8")
    return file


def codes(shares: Tensor) -> np.ndarray:
    """Shares of the largest, 0 to 1, as 16-bit logarithms: 0 is 0, 65,535 is 1, in between exp(step · (code − 65535)).

    The step is ln(1 / LOWEST) / 65,534, so the relative error is at most 3 in 10,000; code 1 is LOWEST or less.
    """
    places = 1 - shares.double().clamp_min(LOWEST).log() / math.log(LOWEST)
    return torch.where(shares > 0, 1 + (65534 * places).round(), 0).cpu().numpy().astype("<u2")


def _model(name: str, network: LoadedRun, inputs: Tensor, methods: Sequence[str]) -> dict[str, Any]:
    """The page's data of a model, and the size in `bytes` of its maps and neighbours."""
    model = network.model
    blocks = [torch.cat((layer_maps(model, inputs, m), token_map(model, inputs, m, block=None)[None])) for m in methods]
    maps = torch.stack(blocks).float()  # (methods, depth + 1, B, h, w)
    if not maps.isfinite().all():
        raise UsageError(f"{name}: its maps are not finite, so there is nothing to show: look at its weights")
    peaks = maps.amax((-1, -2), keepdim=True)
    packed = _packed(codes(maps / peaks.clamp_min(torch.finfo(maps.dtype).tiny)))
    near = _neighbours(network, inputs)
    with torch.no_grad():
        likeliest = model(inputs).softmax(-1).max(-1)
    classes = readable_names(network.classes)
    return {
        "name": name,
        "depth": maps.shape[1] - 1,
        "grid": list(maps.shape[-2:]),
        "methods": list(methods),
        "codes": packed,
        "peaks": [float(f"{peak:.6g}") for peak in peaks.flatten().tolist()],
        "near": near,
        "predictions": [
            f"{classes[i]}, {100 * p:.0f}\u00a0%"
            for p, i in zip(likeliest.values.tolist(), likeliest.indices.tolist(), strict=True)
        ],
        "bytes": len(packed) + sum(len(one["places"]) + len(one["codes"]) for one in near if one),
    }


@torch.no_grad()
def _neighbours(network: LoadedRun, inputs: Tensor) -> list[dict[str, Any] | None]:
    """The largest weights of each patch, for every block and for their mean; None if an attention has no weights."""
    net = backbone(network.model)
    blocks: list[Tensor] = []
    if any(operator.weighs == "nothing" for operator in net.operators):
        return [None] * (len(net.operators) + 1)
    for _, W in net.weights(inputs):
        # Mean over heads, patches alone: (B, h · w, h · w) or (B, h · w).
        W = W.mean(1).float()[..., net.prefix :]
        blocks.append(W[:, net.prefix :] if W.ndim == 3 else W)
    alike = len({block.ndim for block in blocks}) == 1
    return [*map(_strongest, blocks), _strongest(torch.stack(blocks).mean(0)) if alike else None]


def _strongest(weights: Tensor) -> dict[str, Any]:
    """Indices and shares of the largest weights of each row: (B, N, N) or, one row for all patches, (B, N).

    `own` is whether each patch has a row of its own.
    """
    rows = weights[:, None] if weights.ndim == 2 else weights
    shares = rows / rows.sum(-1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
    top = shares.topk(min(STRONGEST, shares.shape[-1]))
    places = _packed(top.indices.cpu().numpy().astype("<u2"))
    return {"own": weights.ndim == 3, "places": places, "codes": _packed(codes(top.values))}


def _packed(numbers: np.ndarray) -> str:
    return base64.b64encode(numbers.tobytes()).decode()


def _listed(words: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(words[:-1]), words[-1])))
