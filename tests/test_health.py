"""Heads that are off are counted where they are, and nowhere else."""

import pytest
import torch

from infvit.attention import LinearInfSA, PureInfSA, SoftmaxAttention
from infvit.measure.health import dead_heads
from infvit.vit import VisionTransformer


@pytest.mark.parametrize("attention", [LinearInfSA, PureInfSA, SoftmaxAttention])
def test_dead_heads_are_counted_by_layer_and_head(attention):
    torch.manual_seed(0)
    model = VisionTransformer(attention, img_size=8, patch_size=4, dim=16, depth=2, num_heads=2, num_classes=3)
    with torch.no_grad():  # the second head of the second layer: q = 1 and k = -1 for every token
        qkv = model.blocks[1].attn.qkv
        for part, value in ((0, 1.0), (1, -1.0)):
            rows = slice(16 * part + 8, 16 * part + 16)
            qkv.weight[rows], qkv.bias[rows] = 0, value
    shares = dead_heads(model, torch.randn(5, 3, 8, 8))
    assert shares.shape == (2, 2)
    assert shares[1, 1] == (0 if attention is SoftmaxAttention else 1)
    assert shares[0, 0] < 1
