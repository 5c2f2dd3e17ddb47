"""Chunked and streamed inference and training in chunks against the dense model, which is their naive twin."""

import pytest
import torch
from torch.nn import functional as F

from infvit.errors import UsageError
from infvit.graph import eigenvector_centrality
from infvit.highres import ChunkedTraining, Tokens, chunked, streamed
from infvit.highres.inference import mlp_passes
from infvit.highres.tokens import IMAGENET_MEAN, IMAGENET_STD
from tests.highres.conftest import small_image, small_model

WAYS = [chunked, streamed]


def normalised(image):
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return ((image.read(0, image.height, 0, image.width) / 255 - mean) / std)[None]


@torch.no_grad()
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("size", "chunk"), [*(((24, 40), chunk) for chunk in (1, 7, 10, 23, 1000)), ((16, 16), 5), ((8, 100), 6)]
)
def test_each_way_equals_the_dense_model_also_at_its_trained_resolution(model, way, size, chunk):
    image = small_image(*size)
    found = way(Tokens(model, image, chunk), centrality=True)
    torch.testing.assert_close(found.logits, model(normalised(image)), rtol=1e-5, atol=1e-5)
    weights = model.blocks[-1].attn.weights(model.features(normalised(image))["blocks.2.norm1"])
    weights = weights if weights.ndim == 3 else eigenvector_centrality(weights, tolerance=1e-6).vector
    patches = weights.mean(1)[0, model.num_prefix_tokens :].view(size[0] // 4, size[1] // 4)
    torch.testing.assert_close(found.centrality, patches, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("centrality", [True, False])
def test_progress_adds_up_to_the_passes_through_the_mlp(model, way, centrality):
    """The table of the package, for 3 layers of r rounds, 60 patches and perhaps a class token."""
    reported = []
    way(Tokens(model, small_image(), 10), progress=reported.append, centrality=centrality)
    class_token = model.cls_token is not None
    rounds = model.blocks[0].attn.rounds
    passes = mlp_passes(model, way is streamed, centrality)
    expected = (3 * rounds + 2 * centrality + 3 * (not class_token)) if way is streamed else 2 + (not class_token)
    assert passes == expected
    assert sum(reported) == passes * (61 if class_token and way is chunked else 60)


@pytest.mark.parametrize("chunk", [1, 10, 25])
@pytest.mark.parametrize("way", WAYS)
def test_no_intermediate_value_is_as_long_as_the_image(way, chunk):
    """No MLP gets more than a chunk of tokens."""
    model = small_model()
    lengths: list[int] = []
    for block in model.blocks:
        block.mlp.register_forward_pre_hook(lambda _, inputs: lengths.append(inputs[0].shape[1]))
    way(Tokens(model, small_image(), chunk))
    assert max(lengths) <= chunk


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("parameter", "line"),
    [
        ("blocks.0.attn.qkv.weight", r"layer 0 \(blocks\.0\)"),
        ("blocks.0.mlp.fc2.bias", r"layer 1 \(blocks\.1\) or the MLP before it"),
        ("blocks.2.attn.qkv.bias", r"layer 2 \(blocks\.2\)"),
        ("blocks.2.mlp.fc2.bias", r"layer 2 \(blocks\.2\) or the head"),
        ("head.bias", r"layer 2 \(blocks\.2\) or the head"),
    ],
)
def test_the_place_of_nan_is_reported(way, parameter, line):
    model = small_model()
    with torch.no_grad():
        model.get_parameter(parameter).view(-1)[0] = torch.nan
    with pytest.raises(UsageError, match=f"{line}.* computed NaN"):
        way(Tokens(model, small_image(), 10))


def gradients(model, net, images, labels):
    model.zero_grad()
    torch.manual_seed(11)
    logits = net(images)
    F.cross_entropy(logits, labels).backward()
    return logits.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("chunk", [1, 9, 1000])
def test_logits_and_gradients_equal_the_dense_ones(model, chunk):
    images, labels = torch.randn(2, 3, 24, 20), torch.tensor([1, 4])
    expected, dense = gradients(model, model, images, labels)
    found, chunks = gradients(model, ChunkedTraining(model, chunk), images, labels)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    for name, gradient in dense.items():
        torch.testing.assert_close(chunks[name], gradient, rtol=1e-4, atol=1e-5 * float(gradient.abs().max()), msg=name)


@pytest.mark.slow
def test_stochastic_depth_skips_a_branch_for_all_tokens_of_an_image():
    """One draw for each branch and image: one for each chunk would give many more outcomes."""
    model = small_model(drop_path_rate=0.5).train()
    net, images = ChunkedTraining(model, 5), torch.randn(8, 3, 16, 16)

    def outcomes(module):
        with torch.no_grad():
            return {tuple(module(images)[0].mul(1e3).round().tolist()) for _ in range(60)}

    # Two of three layers can skip two branches: at most 2⁴ outcomes of one image, the same for both.
    assert 2 < len(outcomes(net)) <= 16
    assert len(outcomes(net) & outcomes(model)) > 2
