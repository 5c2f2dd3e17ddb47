"""The convolution of V beside any attention: its twin, padding, masks, models, and what is refused."""

from functools import partial

import pytest
import torch

from infvit.attention import ATTENTIONS, LinearInfSA, SoftmaxAttention
from infvit.errors import UsageError
from infvit.highres.stages import blocks_of, runs_in_pieces
from infvit.measure.attention.blocks import backbone
from infvit.measure.cost import cost
from infvit.vit import VisionTransformer
from tests.attention.test_attention import assert_equal, layer_and_input
from tests.attention.twins import TWINS

SMALL = {"img_size": 16, "patch_size": 4, "dim": 32, "depth": 2, "num_heads": 4, "num_classes": 7}


def local(layer, image, padding=None):
    """For each patch the sum of V over its nine neighbours, weighted channel by channel; 0 at the class token."""
    N, D = image.shape
    V = layer.heads(image[None])[2][0].transpose(0, 1).flatten(1)
    side = int(N**0.5)
    prefix = N - side**2
    rows = [torch.zeros(D, dtype=image.dtype)] * prefix
    for row in range(side):
        for column in range(side):
            total = layer.locality.bias
            for i in range(max(row - 1, 0), min(row + 2, side)):
                for j in range(max(column - 1, 0), min(column + 2, side)):
                    token = prefix + side * i + j
                    if padding is None or not padding[token]:
                        total = total + layer.locality.weight[:, 0, i - row + 1, j - column + 1] * V[token]
            rows.append(total)
    return torch.stack(rows)


@pytest.mark.parametrize("N", [9, 10])
@pytest.mark.parametrize("name", ATTENTIONS)
def test_every_attention_adds_the_weighted_sum_of_neighbours(name, N):
    layer, x = layer_and_input(name, N=N, locality=3)
    x.requires_grad_()
    added = torch.stack([local(layer, image) for image in x]) @ layer.proj.weight.T
    assert_equal(layer(x), TWINS[name](layer, x) + added, layer, x)
    assert (layer.forward_class_token(x) - layer(x)[:, :1]).abs().max() <= 1e-10


def test_padding_adds_nothing_to_its_neighbours():
    layer, x = layer_and_input("linear_infsa", N=17, locality=3)
    plain = LinearInfSA(32, 4).double()
    plain.load_state_dict(layer.state_dict(), strict=False)
    padding = torch.zeros(2, 17, dtype=torch.bool)
    padding[0, 6], padding[1, 9:] = True, True
    x[padding] = torch.nan
    zeros = x.nan_to_num()
    added = torch.stack([local(layer, *one) for one in zip(zeros, padding, strict=True)]) @ layer.proj.weight.T
    found, expected = layer(x, padding), plain(x, padding) + added
    assert (found - expected)[~padding].abs().max() <= 1e-10


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"x": torch.zeros(1, 13, 32)}, "13 tokens are not a square grid.*locality needs: use square images"),
        (
            {"x": torch.zeros(1, 9, 32), "is_causal": True},
            "SoftmaxAttention cannot honour is_causal with a conv",
        ),
    ],
    ids=["tokens", "mask"],
)
def test_what_the_convolution_cannot_do_is_refused(given, message):
    with pytest.raises(UsageError, match=message):
        SoftmaxAttention(32, 4, locality=3)(**given)


@pytest.mark.parametrize("class_token", [True, False])
def test_a_model_counts_it_and_cannot_be_run_in_pieces(class_token):
    """9 multiply-adds a patch and channel, and for Linear-InfSA V and the output of every token."""
    options = {**SMALL, "class_token": class_token}
    plain, model = (VisionTransformer(partial(LinearInfSA, **more), **options) for more in ({}, {"locality": 3}))
    less, more = cost(plain, 16), cost(model, 16)
    assert more.parameters - less.parameters == 2 * 10 * 32
    N, layers = 16 + class_token, 2 - class_token  # the last layer's class token has no neighbours
    assert (more.macs_forward - less.macs_forward) / layers == 16 * 32 * 9 + N * 32 * 32 + (N - 1) * 32 * 32
    assert not runs_in_pieces(model)
    with pytest.raises(UsageError, match=r"blocks\.0 has a convolution over neighbours.*run the model dense"):
        blocks_of(model)


def test_the_output_of_a_measured_block_includes_it():
    model = VisionTransformer(partial(SoftmaxAttention, locality=3), **SMALL).eval()
    net = backbone(model)
    for found, step in net.run(net.embed(torch.randn(2, 3, 16, 16))):
        again = found.output(found.weights(step.tokens), step.tokens)
        torch.testing.assert_close(again, step.attended, rtol=1e-4, atol=1e-5)


def test_every_trained_parameter_gets_a_gradient_as_ddp_needs_it():
    """With a class token the last block's convolution is not trained; with an average over patches it is."""
    net = VisionTransformer(partial(LinearInfSA, locality=3), **SMALL)
    for pool, trained in {"token": [True, False], "avg": [True, True]}.items():
        net.reset_classifier(7, pool)
        net(torch.randn(2, 3, 16, 16)).sum().backward()
        assert [block.attn.locality.weight.requires_grad for block in net.blocks] == trained
        assert all(parameter.grad is not None for parameter in net.parameters() if parameter.requires_grad)
        net.zero_grad()
