"""A small model with all parts active, and an image of another size than its training images."""

import pytest
import torch

from infvit.attention import ATTENTIONS
from infvit.highres.images import InMemory
from infvit.vit import VisionTransformer


def small_model(class_token=True, attention="linear_infsa", **options):
    """Three layers of width 32, with biases, gammas and norms changed from their initial values."""
    torch.manual_seed(3)
    size = {"img_size": 16, "patch_size": 4, "num_classes": 7, "dim": 32, "depth": 3, "num_heads": 4}
    model = VisionTransformer(ATTENTIONS[attention], **size, class_token=class_token, extra_proj=True, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def small_image(height=24, width=40):
    return InMemory(torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=torch.manual_seed(5)))


@pytest.fixture(params=[True, False], ids=["class_token", "mean"])
def class_token(request):
    return request.param


@pytest.fixture(params=["linear_infsa", "kernel_infsa"])
def model(request, class_token):
    return small_model(class_token, request.param)
