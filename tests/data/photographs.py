"""Real photographs for tests, benchmarks and pictures: cut-outs of the two that scikit-learn ships."""

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor

from tests.data.timm_in_pillow import to_tensor


def random_keys(n: int) -> Tensor:
    """Keys of `n` images, int64 (n,)."""
    return torch.randint(-(2**63), 2**63 - 1, (n,))


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
