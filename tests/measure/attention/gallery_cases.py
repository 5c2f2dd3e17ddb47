"""Small models and images to show."""

import torch
from torch import Tensor

from infvit.attention import ATTENTIONS
from infvit.measure.model_source import LoadedRun
from infvit.vit import VisionTransformer

EVIL = "</script><script>document.title='broken into'</script>"
ROWS, COLUMNS, PATCH = 4, 6, 2


def network(attention: str, depth: int = 2, classes: tuple[str, ...] = ("a", "b", EVIL)) -> LoadedRun:
    torch.manual_seed(0)
    size = {"img_size": (ROWS * PATCH, COLUMNS * PATCH), "patch_size": PATCH, "dim": 16, "num_heads": 2}
    model = VisionTransformer(ATTENTIONS[attention], **size, depth=depth, num_classes=len(classes)).eval()
    return LoadedRun(attention, model, list(classes), (0.5, 0.5, 0.5), (0.2, 0.2, 0.2), view=None, make_data=None)


def images(count: int = 2) -> Tensor:
    shape = (count, 3, ROWS * PATCH, COLUMNS * PATCH)
    return torch.randint(256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def inputs(pixels: Tensor) -> Tensor:
    """Normalised, as the models take them."""
    return (pixels / 255 - 0.5) / 0.2
