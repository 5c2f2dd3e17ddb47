"""What an attention layer does to a batch beyond its output: heads that are off."""

import torch
from torch import Tensor

from infvit.attention import DiscountedAttention
from infvit.vit import VisionTransformer


@torch.no_grad()
def dead_heads(model: VisionTransformer, images: Tensor) -> Tensor:
    """The share of images for which a head is off (all its scores ≤ 0, so it adds nothing): (depth, H).

    Only the InfSA layers can switch off; any other layer counts as never off. `images` is (B, C, h, w).
    """
    named = model.features(images)
    shares = []
    for i, block in enumerate(model.blocks):
        if isinstance(block.attn, DiscountedAttention):
            weights = block.attn.weights(named[f"blocks.{i}.norm1"])
            shares.append((weights.flatten(2) == 0).all(-1).float().mean(0))
        else:
            shares.append(images.new_zeros(model.num_heads))
    return torch.stack(shares)
