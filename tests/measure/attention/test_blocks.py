"""timm's Vision Transformers, read block by block, against what their own unfused attention computes."""

import pytest
import timm
import torch
from timm.models import vision_transformer as timm_vit

from infvit.convert import convert
from infvit.measure.attention.blocks import backbone
from infvit.measure.attention.maps import METHODS, layer_maps, offered, token_map

SIZE = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}

MODELS = {
    "plain": ("vit_tiny_patch16_224", {}),
    "pooled patches beside a class token": ("vit_tiny_patch16_224", {"global_pool": "avg"}),
    "norms of q, k and output": ("vit_tiny_patch16_224", {"qk_norm": True, "scale_attn_norm": True}),
    "another size": ("vit_tiny_patch16_224", {"dynamic_img_size": True}),
    "distilled": ("deit_tiny_distilled_patch16_224", {}),
    "registers and layer scale": ("vit_small_patch14_reg4_dinov2", {"init_values": 1.0}),
    "no class token": ("vit_medium_patch16_gap_256", {}),
    "registers alone": ("vit_medium_patch16_gap_256", {"reg_tokens": 3}),
    "pooled by attention": ("vit_base_patch16_siglip_224", {}),
    "norm before the blocks": ("vit_base_patch16_clip_224", {}),
}


def timm_model(name):
    made, options = MODELS[name]
    return strong(timm.create_model(made, **{**SIZE, **options}))


def strong(net):
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape))
    return net.eval()


def held(net):
    """Makes the attentions of a model record the matrices that they apply, with gradients."""
    matrices = []

    def hold(_module, inputs):
        inputs[0].retain_grad()
        matrices.append(inputs[0])

    for module in net.modules():
        if hasattr(module, "fused_attn") and hasattr(module, "attn_drop"):
            module.fused_attn = False
            module.attn_drop.register_forward_pre_hook(hold)
    return matrices


@pytest.mark.parametrize("name", MODELS)
def test_blocks_and_maps_of_timms_models_equal_their_own_logits_and_matrices(name):
    net = timm_model(name)
    x = torch.randn(2, 3, 24, 40) if name == "another size" else torch.randn(2, 3, 32, 32)
    others = {method: layer_maps(net, x, method) for method in offered(net)}
    torch.testing.assert_close(in_turn(net, x), net(x))
    matrices = held(net)
    net(x).amax(1).sum().backward()
    prefix = net.num_prefix_tokens
    by_class_token = net.cls_token is not None and "pooled" not in name

    def read(matrices):
        matrices = matrices.detach().mean(2)
        rows = matrices[:, :, 0] if by_class_token else matrices[:, :, prefix:].mean(2)
        patches = rows[:, :, prefix:]
        return (patches / patches.sum(-1, keepdim=True).clamp_min(1e-30)).unflatten(-1, others["random"].shape[-2:])

    torch.testing.assert_close(others["attention"], read(torch.stack(matrices)))
    assert set(METHODS) - set(others) == {"weights"}
    relevance = torch.stack([(W * W.grad).clamp_min(0) for W in matrices])
    torch.testing.assert_close(others["gradient_attention"], read(relevance), rtol=1e-3, atol=1e-5)
    assert all(maps.isfinite().all() for maps in others.values())


def in_turn(net, images):
    parts = backbone(net)
    *_, (_, last) = parts.run(parts.embed(images))
    return parts.logits(last.out)


def test_a_converted_model_supports_the_methods_of_its_new_attention():
    net, x = timm_model("plain"), torch.randn(2, 3, 32, 32)
    softmax = layer_maps(net, x, "gradient_attention")
    convert(net, "softmax")
    torch.testing.assert_close(layer_maps(net, x, "gradient_attention"), softmax)
    half = timm_model("plain")
    convert(half, "linear_infsa", include=["blocks.1.*"])
    assert "rollout" not in offered(half)
    assert "weights" not in offered(half)
    linear = timm_model("plain")
    convert(linear, "linear_infsa")
    maps = token_map(linear, x, "weights")
    first, second = linear.blocks
    expected = second.attn.layer.weights(second.norm1(first(embedded(linear, x)))).mean(1)
    expected = expected[:, 1:] / expected[:, 1:].sum(1, keepdim=True)
    torch.testing.assert_close(maps.flatten(1), expected.detach())


def embedded(net, images):
    tokens = net.patch_embed(images)
    tokens = torch.cat([net.cls_token.expand(len(images), -1, -1), tokens], 1)
    return tokens + net.pos_embed


def test_an_unknown_block_supports_the_random_map_alone():
    class Other(timm_vit.Block):
        pass

    net = timm.create_model("vit_tiny_patch16_224", **SIZE, block_fn=Other).eval()
    assert offered(net) == ("random",)
    assert token_map(net, torch.randn(1, 3, 32, 32), "random").shape == (1, 4, 4)
