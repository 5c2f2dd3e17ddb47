"""Models under timm's names: `timm.create_model("linear_infvit_4l_patch16_224")` after `import infvit`.

Width 1024, 16 heads, MLP 4096, patch 16, 224 × 224 (arXiv:2603.00175). All have equal parameters by default apart from
one gamma per head and layer; `extra_proj=True` gives the counts published for softmax and Pure. `attention="mine"`
builds one with another attention, by its name (`infvit.attention.register`) or its class.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from infvit.attention import KernelInfSA, LinearInfSA, PureInfSA, SoftmaxAttention, find
from infvit.vit import VisionTransformer

_MODELS: dict[str, tuple[type[nn.Module], int]] = {
    "vit_4l_patch16_224": (SoftmaxAttention, 4),  # 53.5M parameters (57.7M with `extra_proj`, as published)
    "infvit_4l_patch16_224": (PureInfSA, 4),  # 53.5M (57.7M)
    "infvit_24l_patch16_224": (PureInfSA, 24),  # 305.4M (330.6M)
    "linear_infvit_4l_patch16_224": (LinearInfSA, 4),  # 53.5M, as published
    "kernel_infvit_4l_patch16_224": (KernelInfSA, 4),  # 53.5M; not in the paper
}
# The view of the images is timm's default: 224 × 224, crop 0.875, bicubic, ImageNet's mean and deviation.
_CFG = {"first_conv": "patch_embed.proj", "classifier": "head", "license": "mit"}
default_cfgs = generate_default_cfgs({f"{name}.untrained": _CFG for name in _MODELS})


def _register(name: str, attention: type[nn.Module], depth: int) -> None:
    def create(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
        paper: dict[str, Any] = {"attention": attention, "depth": depth, "dim": 1024, "num_heads": 16, "patch_size": 16}
        if isinstance(named := kwargs.get("attention"), str):
            kwargs["attention"] = find(named)
        maps = {"out_indices": 3, "feature_cls": "getter"}  # with features_only=True, of the last 3 blocks
        return build_model_with_cfg(VisionTransformer, name, pretrained, feature_cfg=maps, **(paper | kwargs))

    create.__name__ = name
    register_model(create)


for _name, _options in _MODELS.items():
    _register(_name, *_options)
