"""Attentions that offer nothing but forward, some of them wrong."""

import torch
from torch import Tensor, nn

SMALL = {"img_size": 16, "patch_size": 4, "dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}


class Plain(nn.Module):
    """The mean of all tokens, no argument more than needed."""

    def __init__(self, dim: int, num_heads: int, scale: float = 1.0) -> None:  # noqa: ARG002
        super().__init__()
        self.scale, self.value = scale, nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.value(x).mean(1, keepdim=True)


class Wide(Plain):
    """Returns tokens of another width."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, x), -1)


class Mixing(Plain):
    """Adds the mean of all images."""

    def forward(self, x: Tensor) -> Tensor:
        return x + x.mean(0, keepdim=True)


class OnTheDevice(Plain):
    """Uses autocast as torch's documentation does, which the meta device does not have."""

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, dtype=torch.bfloat16):
            return super().forward(x)
