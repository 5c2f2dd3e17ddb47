"""The paper's models under timm's names: `timm.create_model("linear_infvit_4l_patch16_224")` after `import infvit`.

Width 1024, 16 heads, MLP 4096, patch 16, 224 × 224 (arXiv:2603.00175). All have equal parameters by default apart from
one gamma per head and layer; `extra_proj=True` gives the counts published for softmax and Pure.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

from infvit.attention import LinearInfSA, PureInfSA, SoftmaxAttention
from infvit.vit import VisionTransformer

# The view of the images is timm's default: 224 × 224, crop 0.875, bicubic, ImageNet's mean and deviation.
_CFG = {"first_conv": "patch_embed.proj", "classifier": "head", "license": "mit"}
_NAMES = ("vit_4l_patch16_224", "infvit_4l_patch16_224", "infvit_24l_patch16_224", "linear_infvit_4l_patch16_224")
default_cfgs = generate_default_cfgs({f"{name}.untrained": _CFG for name in _NAMES})


def _create(name: str, pretrained: bool, attention: type[nn.Module], depth: int, /, **kwargs: Any) -> VisionTransformer:
    paper: dict[str, Any] = {"attention": attention, "depth": depth, "dim": 1024, "num_heads": 16, "patch_size": 16}
    return build_model_with_cfg(VisionTransformer, name, pretrained, **(paper | kwargs))


@register_model
def vit_4l_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Softmax attention, 4 layers, 53.5M parameters (57.7M with `extra_proj`, as published)."""
    return _create("vit_4l_patch16_224", pretrained, SoftmaxAttention, 4, **kwargs)


@register_model
def infvit_4l_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Pure InfSA, 4 layers, 53.5M parameters (57.7M with `extra_proj`, as published)."""
    return _create("infvit_4l_patch16_224", pretrained, PureInfSA, 4, **kwargs)


@register_model
def infvit_24l_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Pure InfSA, 24 layers, 305.4M parameters (330.6M with `extra_proj`, as published)."""
    return _create("infvit_24l_patch16_224", pretrained, PureInfSA, 24, **kwargs)


@register_model
def linear_infvit_4l_patch16_224(pretrained: bool = False, **kwargs: Any) -> VisionTransformer:
    """Linear-InfSA, 4 layers, 53.5M parameters, as published."""
    return _create("linear_infvit_4l_patch16_224", pretrained, LinearInfSA, 4, **kwargs)
