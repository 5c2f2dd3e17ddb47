"""How a published model of timm sees an image: by the size, crop and interpolation that its weights were made for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from data.view import View
from infvit.timm_models import published


@dataclass(frozen=True)
class TimmView(View):
    """timm's own transform of evaluation.

    Args:
        interpolation: "bicubic", "bilinear", ...
        crop_mode: "center"; "squash", which keeps no aspect; "border", which pads.
        mean: of the channels on the scale [0, 1], the colour of a border.
    """

    interpolation: str = "bicubic"
    crop_mode: str = "center"
    mean: Sequence[float] = field(default=(0.0, 0.0, 0.0), hash=False)  # a list, from a configuration

    def __str__(self) -> str:
        return f"{self.size} px, PIL {self.interpolation}, {self.crop_mode} crop {self.crop_ratio}"

    def evaluation(self) -> "TimmView":
        """Itself: nothing of it is random."""
        return self

    def __call__(self, image: Image.Image, key: Tensor | None = None) -> Tensor:
        """PIL image → uint8 (3, size, size)."""
        return torch.as_tensor(self._transform(image))

    @cached_property
    def _transform(self) -> Any:
        return create_transform(
            self.size,
            interpolation=self.interpolation,
            crop_pct=self.crop_ratio,
            crop_mode=self.crop_mode,
            mean=tuple(self.mean),
            use_prefetcher=True,  # bytes, which are normalised on the device
        )


def as_published(name: str) -> dict[str, Any]:
    """`view`, `mean` and `std` of a data module for timm's model `name`, as configuration.

    The size is that of its training; timm's own tables have some models at a larger one ("test_input_size").
    """
    how = resolve_data_config(pretrained_cfg=published(name).to_dict())
    view = {"size": how["input_size"][-1], "crop_ratio": how["crop_pct"]}
    view |= {key: how[key] for key in ("interpolation", "crop_mode", "mean")}
    return {"view": {"_target_": "data.timm_view.TimmView"} | view, "mean": how["mean"], "std": how["std"]}
