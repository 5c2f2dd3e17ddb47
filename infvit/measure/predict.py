"""Classifies images of any size with a trained model."""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow
from PIL import ImageOps
from torch import Tensor

from infvit.class_names import readable_names
from infvit.errors import UsageError
from infvit.highres import Tokens, chunked, open_image
from infvit.highres.images import Image, InMemory, Padded, decode
from infvit.highres.inference import bar
from infvit.highres.stages import check_finite, runs_in_pieces
from infvit.highres.tokens import normalise
from infvit.image_file import SUFFIXES, files_in, is_image, readable
from infvit.measure.model_source import LoadedRun, ModelSource
from infvit.vit import VisionTransformer

MAP_SIDE = 512
"""Least pixels of the shorter side of a written map."""


def predict(
    source: ModelSource,
    out: Path,
    checkpoint: str,
    image: str,
    resize: bool,
    pad: bool,
    allow_huge: bool,
    centrality: bool,
    chunk: int,
) -> None:
    """Prints the five most probable classes of every image; writes predictions.json and, with `centrality`, PNGs.

    Raises:
        UsageError: if there is no image, one cannot be read or does not fit, or the model cannot give the maps.
    """
    files = image_files(Path(image))
    network = source.load(checkpoint)
    model = network.model
    if centrality and not runs_in_pieces(model):
        raise UsageError("centrality=true needs a model of Linear-InfSA layers: leave it out for this one")
    names = readable_names(network.classes)
    rows: list[dict[str, Any]] = []
    for file in files:
        opened: Image = InMemory(in_view(file, network, allow_huge)) if resize else open_image(file, allow_huge)
        if pad and isinstance(model, VisionTransformer):
            opened = Padded(opened, model.patch_size)
        if runs_in_pieces(model):
            tokens = Tokens(model, opened, chunk, network.mean, network.std)
            with bar(tokens, file.name) as progress:
                logits, weights = chunked(tokens, progress, centrality)
        else:
            logits, weights = _dense(network, opened), None
        top5 = logits[0].softmax(-1).topk(min(5, len(names)))
        found = [(names[i], p) for p, i in zip(top5.values.tolist(), top5.indices.tolist(), strict=True)]
        print(f"{readable(str(file))}  {opened.height} × {opened.width}")
        print("".join(f"  {100 * p:5.1f}%  {name}\n" for name, p in found), end="", flush=True)
        row = {"image": str(file), "height": opened.height, "width": opened.width}
        rows.append(row | {"top5": [{"class": name, "probability": p} for name, p in found]})
        if weights is not None:
            place = file.relative_to(image) if Path(image).is_dir() else Path(file.name)
            picture = out / place.with_name(f"{place.name}.centrality.png")
            picture.parent.mkdir(parents=True, exist_ok=True)
            _picture(weights).save(picture)
            print(f"  {picture}")
    (out / "predictions.json").write_text(json.dumps({"ckpt": checkpoint, "images": rows}, indent=2) + "\n")
    print(out / "predictions.json")


def image_files(path: Path) -> list[Path]:
    """The file, or the images in the folder and its subfolders; UsageError if there are none."""
    if path.is_file():
        return [path]
    found = files_in(path) if path.is_dir() else ()
    files = sorted(Path(file) for file in found if is_image(file) or file.lower().endswith(".npy"))
    if not files:
        raise UsageError(
            f"image={path} is neither a file nor a folder with images ({', '.join(sorted(SUFFIXES))}, .npy)"
        )
    return files


def in_view(file: Path, network: LoadedRun, allow_huge: bool) -> Tensor:
    """An image file as the model's evaluation crops it, uint8 (3, h, w)."""
    pixels = decode(file, allow_huge)
    return network.view(Pillow.fromarray(pixels.permute(1, 2, 0).numpy()))


@torch.inference_mode()
def _dense(network: LoadedRun, image: Image) -> Tensor:
    pixels = normalise(image.read(0, image.height, 0, image.width), torch.float32, network.mean, network.std)[None]
    logits = network.model(pixels)
    if isinstance(network.model, VisionTransformer) and not logits.isfinite().all():
        for name, values in network.model.features(pixels).items():
            check_finite(values, name)
    check_finite(logits, "the model")
    return logits


def _picture(weights: Tensor) -> Pillow.Image:
    """A grey map, the largest weight white, a square of pixels per patch: (rows, columns)."""
    scale = max(-(-MAP_SIDE // min(weights.shape)), 1)
    grey = (255 * weights / weights.max().clamp_min(torch.finfo(weights.dtype).tiny)).byte().numpy()
    return ImageOps.scale(Pillow.fromarray(grey), scale, Pillow.Resampling.NEAREST)
