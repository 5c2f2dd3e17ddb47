"""Chunked and streamed inference against the dense model, which is their naive twin."""

import pytest
import torch

from infvit.errors import UsageError
from infvit.highres import Tokens, chunked, streamed
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
    patches = weights.mean(1)[0, model.num_prefix_tokens :].view(size[0] // 4, size[1] // 4)
    torch.testing.assert_close(found.centrality, patches, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_progress_adds_up_to_the_passes_through_the_mlp(model, way):
    """The table of the package: L - 1 passes chunked, L (L - 1) streamed, of 60 patches and perhaps a class token."""
    reported = []
    way(Tokens(model, small_image(), 10), progress=reported.append)
    class_token = model.cls_token is not None
    passes = mlp_passes(3, way is streamed, class_token)
    assert (
        passes == {(chunked, True): 2, (chunked, False): 3, (streamed, True): 6, (streamed, False): 9}[way, class_token]
    )
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


def test_a_side_that_is_not_a_multiple_of_the_patch_is_refused_with_the_two_nearest():
    with pytest.raises(UsageError, match="use 24 or 28"):
        Tokens(small_model(), small_image(25, 40), 10)


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
