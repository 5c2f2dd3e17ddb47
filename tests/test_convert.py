"""convert(): softmax → softmax must change nothing, on real models with random weights."""

import copy
import math
from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from infvit import VisionTransformer
from infvit.attention import LinearInfSA, PureInfSA, SoftmaxAttention
from infvit.convert import convert
from infvit.convert.adapters import MultiheadAdapter
from infvit.errors import UsageError

SIZE = 32
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 7, 16, generator=torch.Generator().manual_seed(1))
FUTURE = nn.Transformer.generate_square_subsequent_mask(7)


def strong(model: nn.Module) -> nn.Module:
    """Sets weights and biases far from 0, so that a lost bias or a swapped head is visible."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def timm_model(name: str, **options: object) -> nn.Module:
    small = {"img_size": SIZE, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4, "num_classes": 5}
    return timm.create_model(name, **{**small, **options})


def torchvision_vit() -> nn.Module:
    vit = pytest.importorskip("torchvision").models.VisionTransformer
    model = vit(SIZE, 8, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5)
    nn.init.normal_(model.heads.head.weight)
    return model


def transformers_model(name: str, implementation: str = "sdpa", **options: object) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    made = getattr(transformers, f"{name}Config")(**SMALL, image_size=SIZE, patch_size=8, **options)
    made._attn_implementation = implementation
    return getattr(transformers, name + "Model")(made)


def encoder(**options: object) -> nn.Module:
    options = {"batch_first": True, "dropout": 0.0, "dim_feedforward": 32, **options}
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, **options), 2, enable_nested_tensor=False)


FAMILIES: dict[str, Callable[[], nn.Module]] = {
    "timm vit": lambda: timm_model("vit_tiny_patch16_224"),
    "timm vit, no qkv bias": lambda: timm_model("vit_tiny_patch16_224", qkv_bias=False),
    "timm vit, two attentions a block": lambda: timm_model("vit_small_patch16_18x2_224"),
    "timm deit": lambda: timm_model("deit_tiny_distilled_patch16_224"),
    "timm deit3": lambda: timm_model("deit3_small_patch16_224"),
    "timm beit": lambda: timm_model("beit_base_patch16_224", use_rel_pos_bias=False),
    "torchvision vit": torchvision_vit,
    "torch encoder": encoder,
    "torch encoder, batch second": lambda: encoder(batch_first=False),
    "torch encoder, norm first": lambda: encoder(norm_first=True, activation="gelu"),
    "torch encoder, no bias": lambda: encoder(bias=False),
    "transformers ViT": lambda: transformers_model("ViT"),
    "transformers ViT, eager": lambda: transformers_model("ViT", "eager"),
    "transformers ViT, no qkv bias": lambda: transformers_model("ViT", qkv_bias=False),
    "transformers DINOv2": lambda: transformers_model("Dinov2"),
    "transformers DeiT": lambda: transformers_model("DeiT"),
    "transformers BEiT": lambda: transformers_model("Beit"),
    "transformers CLIP vision": lambda: transformers_model("CLIPVision"),
    "transformers CLIP vision, eager": lambda: transformers_model("CLIPVision", "eager"),
}


def run(model: nn.Module) -> Tensor:
    out = model(TOKENS if isinstance(model, nn.TransformerEncoder) else IMAGES)
    return out if isinstance(out, Tensor) else out.last_hidden_state


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> nn.Module:
    return strong(FAMILIES[request.param]())


def test_softmax_to_softmax_changes_nothing(model):
    with torch.no_grad():
        before = run(model)
        report = convert(model, "softmax")
        after = run(model)
    assert len(report.converted) >= 2
    assert not report.left_alone
    assert (after - before).abs().max() <= 1e-5 * before.abs().max().clamp_min(1)


def test_every_layer_of_a_converted_model_computes_and_learns(model):
    with torch.no_grad():
        before = run(model)
    report = convert(model, "linear_infsa")
    layers = [m for m in model.modules() if isinstance(m, LinearInfSA)]
    assert len(layers) == len(report.converted)
    called = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: called.append(1))
    after = run(model)
    assert len(called) == len(layers)
    assert (after - before).abs().max() > 1e-3
    # A random direction: the sum over the channels of a LayerNorm has no gradient.
    (after * torch.randn(after.shape, generator=torch.Generator().manual_seed(3))).sum().backward()
    for layer in layers:
        for name in ("qkv.weight", "proj.weight", "gamma_logit"):
            gradient = layer.get_parameter(name).grad
            assert gradient is not None
            assert gradient.isfinite().all()
            assert gradient.abs().max() > 0


def test_the_fused_path_of_the_encoder_is_off():
    """In eval mode without gradients torch computes softmax from the weights, past every submodule."""
    model = strong(nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=True), 2))
    convert(model, "infsa")
    # No hooks here: torch leaves the fused path by itself where there are any.
    with torch.inference_mode():
        inference = model(TOKENS)
    torch.testing.assert_close(inference, model.train()(TOKENS).detach())


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("causal", [False, True])
def test_masks_reach_the_layer(batch_first, causal):
    """As torch gives them to its own attention: padding as 0 and -inf, causality as a mask and a hint."""
    block = nn.TransformerEncoderLayer(16, 4, 32, 0.0, batch_first=batch_first)
    model = strong(nn.TransformerEncoder(block, 2, enable_nested_tensor=batch_first))
    x = TOKENS if batch_first else TOKENS.transpose(0, 1)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True
    real = ~padding if batch_first else ~padding.T
    given = {"mask": FUTURE if causal else None, "src_key_padding_mask": padding, "is_causal": causal}
    before = model(x, **given)
    convert(model, "softmax")
    with torch.no_grad():
        after = model(x, **given)
    torch.testing.assert_close(after[real], before[real].detach(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("hint", [None, True])  # without a hint nn.TransformerEncoder finds out by itself
@pytest.mark.parametrize(
    ("attention", "message"),
    [
        ("linear_infsa", r"self_attn: LinearInfSA cannot honour attn_mask"),
        ("infsa", r"self_attn: PureInfSA cannot honour is_causal: .*one number"),
    ],
)
def test_an_encoder_takes_padding_and_refuses_a_causal_mask(attention, message, hint):
    model = strong(encoder())
    convert(model, attention)
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[0, 5:] = True
    padded = model(TOKENS, src_key_padding_mask=padding)
    torch.testing.assert_close(padded[:1, :5], model(TOKENS[:1, :5]))
    with pytest.raises(UsageError, match=message):
        model(TOKENS, mask=FUTURE, is_causal=hint)
    if attention == "infsa":
        assert model(TOKENS, mask=torch.eye(7) > 0).isfinite().all()


def in_a_box(**options: object) -> tuple[nn.MultiheadAttention, nn.ModuleDict]:
    original = strong(nn.MultiheadAttention(16, 4, **options))
    return original, nn.ModuleDict({"attn": copy.deepcopy(original)})


@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}], ids=str)
@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("x", [TOKENS, TOKENS[0]], ids=["batched", "unbatched"])
@pytest.mark.parametrize("masked", [False, True])
def test_multihead_keeps_its_calling_convention(options, average, x, masked):
    original, box = in_a_box(**options)
    convert(box, "softmax")
    # The first axis of TOKENS is the tokens where the batch does not come first.
    N, others = (x.shape[-2], x.shape[:-2]) if options.get("batch_first") or x.dim() == 2 else (2, (7,))
    masks = {"key_padding_mask": torch.arange(N).expand(*others, N) >= N - 1} if masked else {}
    for need_weights in (True, False):
        given = {"need_weights": need_weights, "average_attn_weights": average, **masks}
        expected = original(x, x, x, **given)
        found = box["attn"](x, x, x, **given)
        if masked:  # the row of a padding token means nothing
            rows = 0 if x.dim() == 3 and not options.get("batch_first") else -2
            pairs = [zip(both, (rows, -2), strict=True) for both in (found, expected)]
            found, expected = ([t.narrow(r, 0, N - 1) for t, r in pair if t is not None] for pair in pairs)
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_multihead_returns_the_weights_of_linear_infsa_one_row_per_token():
    _, box = in_a_box(batch_first=True)
    convert(box)
    _, weights = box["attn"](TOKENS, TOKENS, TOKENS)
    assert weights.shape == (2, 7, 7)
    assert (weights == weights[:, :1]).all()
    assert box["attn"](TOKENS, TOKENS, TOKENS, average_attn_weights=False)[1].shape == (2, 4, 7, 7)


def test_unsupported_arguments_are_refused_by_name():
    _, box = in_a_box(batch_first=True)
    convert(box, "softmax")
    attn, x = box["attn"], TOKENS
    with pytest.raises(UsageError, match="attn_mask has values other than 0 and -inf"):
        attn(x, x, x, attn_mask=torch.ones(7, 7))
    with pytest.raises(UsageError, match="not one tensor"):
        attn(x, x.clone(), x)
    model = timm_model("vit_tiny_patch16_224")
    convert(model)
    block = model.blocks[0].attn
    for argument, value in {"attn_mask": torch.ones(7, 7, dtype=torch.bool), "is_causal": True}.items():
        with pytest.raises(UsageError, match=rf"blocks\.0\.attn: LinearInfSA cannot honour {argument}"):
            block(torch.randn(1, 7, 32), **{argument: value})


def test_output_attentions_of_transformers_is_refused():
    model = transformers_model("ViT", "eager")
    convert(model)
    with pytest.raises(UsageError, match="output_attentions"):
        model(IMAGES, output_attentions=True)
    assert len(model(IMAGES, output_hidden_states=True).hidden_states) == 3


class TwoStreams(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.own = nn.MultiheadAttention(16, 4)
        self.other = nn.MultiheadAttention(16, 4)

    def forward(self, x: Tensor, memory: Tensor) -> Tensor:
        x = x + self.own(x, x, x)[0]
        return x + self.other(x, key=memory, value=memory)[0]


def small_swin() -> nn.Module:
    swin = pytest.importorskip("torchvision").models.SwinTransformer
    return swin([4, 4], 8, [1, 1], [2, 2], [4, 4], num_classes=5)


def clip() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    text = SMALL | {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = SMALL | {"image_size": SIZE, "patch_size": 8}
    return transformers.CLIPModel(transformers.CLIPConfig(text_config=text, vision_config=vision))


class Grouped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_heads = 4
        self.q_proj, self.out_proj = nn.Linear(16, 16), nn.Linear(16, 16)
        self.k_proj, self.v_proj = nn.Linear(16, 8), nn.Linear(16, 8)


def distance(S: Tensor) -> Tensor:
    i = torch.arange(S.shape[-1])
    return (i[:, None] - i).abs()


RULES: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "window": (lambda S: S.masked_fill(distance(S) > 8, -torch.inf), "26 tokens"),
    "prefix": (lambda S: S.masked_fill(distance(S)[0] < (S.shape[-1] > 16), -torch.inf), "26 tokens"),
    "above a length": (lambda S: S if S.shape[-1] <= 256 else 2 * S, "1025 tokens"),
    "at the model's length": (lambda S: S if S.shape[-1] != 26 else S.triu(), "26 tokens"),
    "scaled by the length": (lambda S: S * math.log(S.shape[-1]) / math.log(26), "5 tokens"),
    "ALiBi": (lambda S: S - distance(S) / 256, "5 tokens"),
    "top k": (lambda S: S.masked_fill(S.topk(min(S.shape[-1], 32)).values[..., -1:] > S, -torch.inf), "50 tokens"),
    "soft cap": (lambda S: 50 * (S / 50).tanh(), "5 tokens"),
    "clamp": (lambda S: S.clamp(-20, 20), "50 tokens"),
    "dropout of another name": (nn.Dropout(0.1), "50 tokens in training"),
}


class Ruled(SoftmaxAttention):
    def __init__(self, rule: Callable[[Tensor], Tensor]) -> None:
        super().__init__(16, 4)
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        Q, K, V = self.heads(x)
        return self.merge_heads(self.rule(0.5 * Q @ K.mT).softmax(-1) @ V)


def positioned(attention: nn.Module, tokens: int) -> nn.Module:
    model = nn.Module()
    model.attn, model.pos_embed = attention, nn.Parameter(torch.zeros(1, tokens, 16))
    return model


def softmax_with(change: Callable[[nn.Module], object]) -> nn.Module:
    attention = SoftmaxAttention(16, 4)
    change(attention)
    return nn.ModuleDict({"attn": attention})


@pytest.mark.parametrize(("rule", "tokens"), RULES.values(), ids=RULES)
def test_a_rule_among_tokens_is_found_whatever_it_depends_on(rule, tokens):
    assert f"on {tokens} differs" in convert(positioned(Ruled(rule), 26), "softmax").left_alone["attn"]


def test_more_tokens_than_can_be_tried_are_left_alone_unless_the_class_is_known():
    plain = positioned(Ruled(lambda S: S), 9216)
    assert "has 9,217 tokens, and trials at most 2,500" in convert(plain).left_alone["attn"]
    assert convert(positioned(SoftmaxAttention(16, 4), 9216)).converted == ["attn"]


BEIT, SHARED = "beit_base_patch16_224", {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True}
LEFT_ALONE: dict[str, tuple[Callable[[], nn.Module], int, str]] = {
    "torchvision swin": (small_swin, 2, "q, k, v and o: relative_position_bias_table"),
    "beit": (lambda: timm_model(BEIT), 2, "q, k, v and o: relative_position_bias_table"),
    "beit, shared": (lambda: timm_model(BEIT, **SHARED), 2, "relative-position bias, held by its Beit"),
    "transformers beit": (lambda: transformers_model("Beit", use_shared_relative_position_bias=True), 2, "bias"),
    "qk-norm": (lambda: timm_model("vit_tiny_patch16_224", qk_norm=True), 2, "q, k, v and o: q_norm.weight"),
    "rotary": (lambda: timm_model("eva02_tiny_patch14_224"), 2, "tokens and masks: rope"),
    "decoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 4), 1),
        2,
        "of a decoder, which is called",
    ),
    "kdim": (lambda: nn.ModuleDict({"attn": nn.MultiheadAttention(16, 4, kdim=8)}), 1, "cross-attention"),
    "bias_kv": (lambda: nn.ModuleDict({"a": nn.MultiheadAttention(16, 4, add_bias_kv=True)}), 1, "additional key"),
    "CLIP text": (clip, 2, "text (CLIPTextConfig)"),
    "grouped": (lambda: nn.ModuleDict({"attn": Grouped()}), 1, "grouped queries"),
    "temperature": (lambda: nn.ModuleDict({"attn": Ruled(lambda S: S / 2)}), 1, "not plain softmax"),
    "a tensor": (lambda: softmax_with(lambda a: setattr(a, "bias", torch.zeros(4))), 1, "q, k, v and o: bias"),
    "a hook": (lambda: softmax_with(lambda a: a.qkv.register_forward_hook(print)), 1, "has hooks, which would be lost"),
    "pooling": (lambda: timm_model("vit_base_patch16_siglip_224"), 1, "AttentionPoolLatent"),
    "infvit": (lambda: nn.ModuleDict({"attn": PureInfSA(16, 4)}), 1, "q, k, v and o: gamma_logit"),
}


@pytest.mark.parametrize(("make", "count", "reason"), LEFT_ALONE.values(), ids=LEFT_ALONE)
def test_other_attentions_are_left_alone_and_listed(make, count, reason):
    model = make()
    before = dict(model.named_modules())
    report = convert(model)
    assert len(report.left_alone) == count
    assert reason in str(next(iter(report.left_alone.values())))
    for name, why in report.left_alone.items():
        assert model.get_submodule(name) is before[name]
        assert name in str(report)
        assert why in str(report)


def test_the_rest_of_a_mixed_model_is_converted():
    model = TwoStreams()
    convert(model)
    with pytest.raises(UsageError, match=r"other: called with query, key and value that are not one tensor.*exclude="):
        model(TOKENS.transpose(0, 1), TOKENS.transpose(0, 1))
    assert convert(TwoStreams(), exclude="other").converted == ["own"]
    report = convert(clip())
    assert report.converted == [name for name in report.converted if name.startswith("vision_model")]
    assert len(report.converted) == 2


def test_patterns_match_names_of_modules_and_of_their_ancestors():
    model = timm_model("vit_tiny_patch16_224", depth=4)
    report = convert(model, include="blocks.[0-2]", exclude=["*.1.*"])
    assert report.converted == ["blocks.0.attn", "blocks.2.attn"]
    assert report.left_alone == {"blocks.1.attn": "excluded by '*.1.*'", "blocks.3.attn": "not included"}
    again = convert(model, "softmax")
    assert again.converted == ["blocks.1.attn", "blocks.3.attn"]
    assert again.left_alone["blocks.0.attn"] == "already converted to LinearInfSA"


def test_layers_take_over_weights_options_dtype_and_mode():
    model = timm_model("vit_tiny_patch16_224", attn_drop_rate=0.1, proj_drop_rate=0.2).to(torch.bfloat16).eval()
    model.blocks[0].attn.requires_grad_(False)
    weights = [block.attn.qkv.weight.clone() for block in model.blocks]
    convert(model, "infsa", include="blocks.0", gamma=0.5)
    convert(model, "infsa", copy_weights=False)
    layer = model.blocks[0].attn.layer
    assert (layer.attn_drop.p, layer.proj_drop.p, layer.training) == (0.1, 0.2, False)
    assert layer.qkv.weight.dtype is torch.bfloat16
    assert layer.gamma.mean().item() == pytest.approx(0.5)
    assert (layer.qkv.weight.requires_grad, layer.gamma_logit.requires_grad) == (False, True)
    assert model.blocks[1].attn.layer.qkv.weight.requires_grad
    copied = [torch.equal(block.attn.layer.qkv.weight, old) for block, old in zip(model.blocks, weights, strict=True)]
    assert copied == [True, False]


def test_the_layers_of_infvit_are_replaced_without_an_adapter():
    model = VisionTransformer(SoftmaxAttention, img_size=SIZE, patch_size=8, dim=16, depth=2, num_heads=4)
    weight = model.blocks[1].attn.qkv.weight
    assert convert(model).converted == ["blocks.0.attn", "blocks.1.attn"]
    assert isinstance(model.blocks[1].attn, LinearInfSA)
    assert torch.equal(model.blocks[1].attn.qkv.weight, weight)


def test_beit_has_no_bias_of_keys():
    model = strong(timm_model("beit_base_patch16_224", use_rel_pos_bias=False))
    q_bias, v_bias = model.blocks[0].attn.q_bias.clone(), model.blocks[0].attn.v_bias.clone()
    convert(model, "infsa")
    assert torch.equal(model.blocks[0].attn.layer.qkv.bias, torch.cat((q_bias, torch.zeros(32), v_bias)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "linear"}, "linear_infsa"),
        ({"attention": 3}, "attention=3: expected a name"),
        ({"gama": 0.9}, "gama"),
        ({"num_heads": 2}, "comes from the model"),
        ({"include": "block.*"}, r"matches no attention.*blocks\.0\.attn"),
        ({"exclude": ["head"]}, "matches no attention"),
        ({"attention": lambda *_, **__: nn.Identity()}, "copy_weights=False"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, dict) else value,
)
def test_mistakes_are_reported_in_one_line_and_change_nothing(options, message):
    model = timm_model("vit_tiny_patch16_224")
    before = list(model.modules())
    with pytest.raises(UsageError, match=message) as error:
        convert(model, **options)
    assert "\n" not in str(error.value)
    assert list(model.modules()) == before


def test_a_model_that_is_itself_an_attention_cannot_be_replaced_in_place():
    with pytest.raises(UsageError, match="ModuleDict"):
        convert(nn.MultiheadAttention(16, 4))


def test_an_attention_shared_by_two_blocks_stays_shared():
    attn = nn.MultiheadAttention(16, 4)
    model = nn.ModuleDict({"a": attn, "b": attn})
    assert convert(model).converted == ["a", "b"]
    assert isinstance(model["a"], MultiheadAdapter)
    assert model["a"] is model["b"]


def test_a_class_that_takes_nothing_but_width_and_heads():
    """Its biases are zeros where the model has none, and a model's dropout that it cannot take over is reported."""

    class Bare(SoftmaxAttention):
        def __init__(self, dim, num_heads):
            super().__init__(dim, num_heads)
            nn.init.ones_(self.qkv.bias)

    for options in ({"qkv_bias": False}, {}):
        model = strong(timm_model("vit_tiny_patch16_224", **options))
        before = model(IMAGES)
        assert len(convert(model, Bare).converted) == 2
        torch.testing.assert_close(model(IMAGES), before, atol=1e-5, rtol=1e-5)
    with pytest.warns(UserWarning, match=r"Bare takes no attn_drop: it trains without the model's 0\.1"):
        convert(timm_model("vit_tiny_patch16_224", attn_drop_rate=0.1), Bare)
