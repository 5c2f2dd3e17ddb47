"""Real photographs, cut out of the two that scikit-learn ships, and trees of plain images."""

import itertools
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from tests.data.timm_in_pillow import to_tensor


def random_keys(n: int) -> Tensor:
    """Keys of `n` images, int64 (n,)."""
    return torch.randint(-(2**63), 2**63 - 1, (n,))


def shades(root: Path, count: int) -> Path:
    """A tree of small images in two classes, dark and light, `count` of each to train and to validate; its root."""
    classes = {"dark": 40, "light": 200}.items()
    for split, (name, shade), i in itertools.product(("train", "val"), classes, range(count)):
        (root / split / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade + i, shade, shade)).save(root / split / name / f"{i}.png")
    return root


def photographs(n: int, height: int, width: int, seed: int = 0) -> Tensor:
    """`n` different cut-outs, scaled as a training crop would be: uint8 (n, 3, height, width)."""
    rng = np.random.default_rng(seed)
    sources = [Image.fromarray(image) for image in load_sample_images().images]
    cuts = []
    for i in range(n):
        source = sources[i % len(sources)]
        scale = rng.uniform(0.4, 1)
        w, h = int(source.width * scale), int(source.height * scale)
        left, top = rng.integers(source.width - w + 1), rng.integers(source.height - h + 1)
        cuts.append(to_tensor(source.resize((width, height), box=(left, top, left + w, top + h))))
    return torch.stack(cuts)
