"""Where a model looks: what a block weighs each patch with, as a map over the image."""

import torch
from torch import Tensor

from infvit.attention import Attention
from infvit.errors import UsageError
from infvit.vit import VisionTransformer


@torch.no_grad()
def attention_map(model: VisionTransformer, images: Tensor, block: int = -1) -> Tensor:
    """What a block's attention weighs the patches with: (B, C, height, width) → (B, h, w) on the grid of patches.

    The row of the class token, or the mean over all rows where there is none; an operator with one weight for all
    tokens gives that one. Weights are averaged over heads by their size, since those of some operators have either
    sign (Hydra, Linformer, Nyströmformer), and divided by their sum: a map sums to 1, or is 0 where every head is off.

    Args:
        model: in evaluation mode, unless dropout and stochastic depth are meant to be seen.
        images: as `model` takes them.
        block: its number, from the end if negative.

    Raises:
        UsageError: if the model has no such block, or its attention weighs no tokens (`none`, `xca`).
    """
    depth = len(model.blocks)
    if not -depth <= block < depth:
        raise UsageError(f"block={block} is none of the model's {depth}: expected {-depth} to {depth - 1}")
    block %= depth
    attn = model.blocks[block].attn
    if not isinstance(attn, Attention):
        raise UsageError(f"{type(attn).__name__} does not say what it weighs: expected a class of infvit.attention")
    named = model.features(images)
    weights = attn.weights(named[f"blocks.{block}.norm1"]).abs().mean(1)  # (B, N) or (B, N, N)
    prefix = model.num_prefix_tokens
    if weights.ndim == 3:
        weights = weights[:, 0] if prefix else weights.mean(1)
    shares = weights[:, prefix:].float()
    shares = shares / shares.sum(1, keepdim=True).clamp_min(torch.finfo(shares.dtype).tiny)
    return shares.unflatten(1, model.grid(*images.shape[-2:]))
