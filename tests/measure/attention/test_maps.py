"""Maps against their formulas, networkx, and gradients by autograd through stored weights."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from infvit.attention import ATTENTIONS, DifferentialAttention, DiscountedAttention, LinearInfSA
from infvit.attention.gated import GatedAttention
from infvit.attention.series import SeriesAttention
from infvit.errors import UsageError
from infvit.measure.attention.maps import METHODS, layer_maps, offered, token_map
from infvit.vit import VisionTransformer
from tests.attention.twins import SIGNED, WITHOUT_WEIGHTS
from tests.measure.attention import naive

WITH_WEIGHTS = sorted(set(ATTENTIONS) - WITHOUT_WEIGHTS)
OF_A_GRAPH = ("attention", "katz_in", "katz_out", "visits", "eigenvector")


def model(attention, class_token=True, **options):
    torch.manual_seed(0)
    maker = ATTENTIONS[attention]
    size = {"img_size": (8, 12), "patch_size": 2, "dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    net = VisionTransformer(lambda dim, num_heads: maker(dim, num_heads, **options), **size, class_token=class_token)
    with torch.no_grad():  # weights far from uniform
        for block in net.blocks:
            block.attn.qkv.weight.mul_(12)
    return net.double().eval()


def images(count=2):
    return torch.randn(count, 3, 8, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def weights(net, x):
    """Of every block, (B, H, N, N) or (B, H, N)."""
    named = net.features(x)
    return [block.attn.weights(named[f"blocks.{i}.norm1"]).detach() for i, block in enumerate(net.blocks)]


def off(net, block, heads=(0, 1)):
    with torch.no_grad():  # q = 1 and k = -1 for every token
        qkv = net.blocks[block].attn.qkv
        for head in heads:
            for begin, value in ((8 * head, 1.0), (16 + 8 * head, -1.0)):
                qkv.weight[begin : begin + 8], qkv.bias[begin : begin + 8] = 0, value


def close(found, expected, rtol=1e-5):
    np.testing.assert_allclose(found.flatten(), expected, rtol=rtol, atol=1e-7)


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("attention", WITH_WEIGHTS)
@pytest.mark.filterwarnings("ignore:power iteration stopped")
def test_graph_maps_equal_their_formulas_and_networkx(attention, class_token):
    net, x = model(attention, class_token), images()
    p = naive.reader(24 + class_token, class_token, class_token)
    for method in OF_A_GRAPH:
        maps = layer_maps(net, x, method)
        for i, W in enumerate(weights(net, x)):
            assert W.min() >= 0 or attention in SIGNED
            gammas = net.blocks[i].attn.gamma.tolist() if attention.endswith("infsa") else [None] * 16
            for b in range(2):
                # One weight a token stands for a matrix with equal rows.
                heads = [
                    naive.measure(method, w.expand(24 + class_token, -1).numpy(), gamma, p)
                    for w, gamma in zip(W[b], gammas, strict=False)
                ]
                # Near the diagonal power iteration stops early, and warns.
                rtol = 2e-2 if (attention, method) == ("mamba2", "eigenvector") else 1e-5
                close(maps[i, b], naive.patches(np.mean(heads, 0), class_token), rtol)
                if method == "katz_out" and (attention.startswith("softmax") or W.ndim == 3):
                    assert maps[i, b].unique().numel() == 1  # no rounding that a ranking would take for a map


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("attention", ["softmax", "infsa", "hydra"])
def test_rollout_multiplies_the_blocks(attention, class_token):
    net, x = model(attention, class_token), images()
    p = naive.reader(24 + class_token, class_token, class_token)
    maps, layers = token_map(net, x, "rollout"), layer_maps(net, x, "rollout")
    assert torch.equal(token_map(net, x, "rollout", block=None), maps)
    W = [block.numpy() for block in weights(net, x)]
    for b in range(2):
        blocks = [block[b] for block in W]
        close(maps[b], naive.patches(naive.rollout(blocks, p), class_token))
        close(layers[0, b], naive.patches(naive.rollout(blocks[:1], p), class_token))


class Held(nn.Module):
    """A layer that stores its weights, so that autograd gives their gradient."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        layer = self.layer
        V = layer.heads(x)[2]
        self.W = layer.weights(x)
        self.W.retain_grad()
        M = self.W
        if isinstance(layer, GatedAttention):
            of_channels = M.unflatten(1, (layer.num_heads, -1))
            return layer.merge_heads(torch.einsum("bhcij,bhjc->bhic", of_channels, V))
        if isinstance(layer, DifferentialAttention):
            O = M @ V  # noqa: E741
            norm = (O.square().mean(-1, keepdim=True) + 1e-5).sqrt()
            return layer.merge_heads((1 - layer.lambda_init) * layer.norm_weight * O / norm)
        if isinstance(layer, LinearInfSA):
            M = M.unsqueeze(2).expand(-1, -1, x.shape[1], -1)
        if isinstance(layer, DiscountedAttention):
            M = layer.gamma[:, None, None] * M
        if isinstance(layer, SeriesAttention) and layer.hops == math.inf:
            identity = torch.eye(M.shape[-1], dtype=M.dtype)
            return layer.merge_heads((torch.linalg.inv(identity - M) - identity) @ V)
        hops = layer.hops if isinstance(layer, SeriesAttention) else 1
        return layer.merge_heads(sum(torch.linalg.matrix_power(M, t) @ V for t in range(1, hops + 1)))


HOPS = [("infsa", {"hops": 3}), ("infsa", {"hops": math.inf})]


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize(("attention", "options"), [*((name, {}) for name in WITH_WEIGHTS), *HOPS])
def test_gradient_attention_is_weight_times_gradient(attention, options, class_token):
    net, held, x = model(attention, class_token, **options), model(attention, class_token, **options), images()
    for block in held.blocks:
        block.attn = Held(block.attn)
    logits = held.features(x)["logits"]
    torch.testing.assert_close(logits, net(x))
    logits.amax(1).sum().backward()
    relevance = [(block.attn.W * block.attn.W.grad).clamp_min(0).detach().numpy() for block in held.blocks]
    p = naive.reader(24 + class_token, class_token, class_token)
    maps = layer_maps(net, x, "gradient_attention")
    for i in range(2):
        for b in range(2):
            read = np.mean([R if R.ndim == 1 else p @ R for R in relevance[i][b]], 0)
            if read[int(class_token) :].any():
                close(maps[i, b], naive.patches(read, class_token))
            else:
                assert (maps[i, b] == 0).all()
    if attention != "linear_infsa":
        together = token_map(net, x, "gradient_attention", block=None)
        close(together[1], naive.patches(naive.propagated([R[1] for R in relevance], p), class_token))


def test_gradient_attention_needs_no_gradients_of_parameters_and_leaves_none():
    net, x = model("softmax"), images()
    expected = token_map(net, x, "gradient_attention")
    net.requires_grad_(False)
    with torch.inference_mode():
        found = token_map(net, x.clone(), "gradient_attention")
    torch.testing.assert_close(found.clone(), expected)
    assert all(parameter.grad is None for parameter in net.parameters())


@pytest.mark.parametrize("attention", ["softmax", "infsa", "linear_infsa", "hydra", "none"])
def test_one_block_equals_its_part_of_all_at_once(attention):
    net, x = model(attention), images()
    for method in offered(net):
        layers = layer_maps(net, x, method)
        assert layers.shape == (2, 2, 4, 6)
        torch.testing.assert_close(layers.sum((2, 3)), torch.ones(2, 2, dtype=torch.float64))
        for i in range(2):
            torch.testing.assert_close(token_map(net, x, method, block=i), layers[i])
        if method not in ("rollout", "gradient_attention"):
            torch.testing.assert_close(token_map(net, x, method, block=None), layers.mean(0))


@pytest.mark.parametrize("class_token", [True, False])
@pytest.mark.parametrize("attention", ["infsa", "linear_infsa"])
def test_heads_that_are_off_give_maps_of_zeros_and_no_nan(attention, class_token):
    net, x = model(attention, class_token), images()
    off(net, block=0)
    for method in offered(net):
        maps = layer_maps(net, x, method)
        assert maps.isfinite().all(), method
        assert (maps[0] == 0).all() or method == "random", method
        assert (maps[1].sum((1, 2)) > 0.99).all(), method
        whole = token_map(net, x, method, block=None)
        torch.testing.assert_close(whole.sum((1, 2)), torch.ones(2, dtype=torch.float64))
    off(net, block=1)
    for method in offered(net):
        assert (token_map(net, x, method, block=None) == 0).all() or method == "random", method


@pytest.mark.parametrize("attention", ["softmax", "infsa", "linear_infsa"])
def test_a_map_does_not_depend_on_its_batch_and_nan_stays_in_its_image(attention):
    net, x = model(attention), images(3)
    with_nan = x.clone()
    with_nan[1] = torch.nan
    for method in offered(net):
        alone = torch.cat([token_map(net, image[None], method) for image in x])
        torch.testing.assert_close(token_map(net, x, method), alone)
        found = token_map(net, with_nan, method)
        torch.testing.assert_close(found[[0, 2]], alone[[0, 2]])
        assert found[1].isnan().any() or method == "random"


def test_the_random_map_follows_from_the_image():
    net, x = model("none"), images(3)
    maps = token_map(net, x, "random")
    assert torch.equal(maps, token_map(net, x, "random", block=0))
    assert not torch.allclose(maps[0], maps[1])


@pytest.mark.slow
def test_a_compiled_model_gives_the_same_map():
    net, x = model("infsa"), images()
    maps = token_map(net, x, "attention")
    net.compile(backend="eager")
    net(x)
    torch.testing.assert_close(token_map(net, x, "attention"), maps)


@pytest.mark.parametrize(
    ("attention", "arguments", "message"),
    [
        (
            "linear_infsa",
            {"method": "rollout"},
            "'rollout' cannot be read from LinearInfSA.* one of attention",
        ),
        ("softmax", {"method": "weights"}, "SoftmaxAttention, which has an N × N matrix"),
        ("none", {"method": "attention"}, "NoAttention, which has no weights of tokens .* expected one of random$"),
        ("xca", {"method": "visits"}, "CrossCovarianceAttention, which has no weights of tokens"),
        ("softmax", {"method": "attn"}, "method='attn' is unknown: choose one of attention, rollout"),
        ("softmax", {"method": "attention", "block": 2}, "block=2 is out of range: .* 2 blocks, expected -2 to 1"),
    ],
)
def test_bad_arguments_are_named(attention, arguments, message):
    with pytest.raises(UsageError, match=message) as caught:
        token_map(model(attention), images(), **arguments)
    assert "\n" not in str(caught.value)


def test_every_method_is_supported_by_some_attention_and_other_models_are_refused():
    assert {method for name in ATTENTIONS for method in offered(model(name))} == set(METHODS)
    with pytest.raises(UsageError, match="Linear does not give the weights of its blocks: expected the Vision"):
        offered(nn.Linear(2, 2))
