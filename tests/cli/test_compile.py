"""torch.compile takes the whole backbone with every attention: one graph, and none more when the batch size changes."""

import functools
import math

import pytest
import torch

from infvit.attention import ATTENTIONS, LinearInfSA, PureInfSA, graph_tiles, pure
from infvit.vit import VisionTransformer

pytestmark = pytest.mark.slow

SMALL = {"img_size": 16, "patch_size": 4, "dim": 32, "num_heads": 4, "num_classes": 7}
VARIANTS = {
    **ATTENTIONS,
    "infsa, all hops": functools.partial(PureInfSA, hops=math.inf),
    "linear_infsa, chunks": functools.partial(LinearInfSA, chunk=5),
    "linear_infsa, locality": functools.partial(LinearInfSA, locality=3),
}


@pytest.fixture(params=[*VARIANTS, "infsa in tiles", "infsa in tiles, all hops"])
def model(request, monkeypatch):
    name = request.param
    if "in tiles" in name:
        monkeypatch.setattr(pure, "DENSE_TOKENS", 0)
        monkeypatch.setattr(graph_tiles, "TILE", 7)
    torch.manual_seed(0)
    torch.compiler.reset()
    depth = 2 if "locality" in name else 1  # the last block's convolution is not used with a class token
    return VisionTransformer(VARIANTS[name.replace(" in tiles", "")], depth=depth, **SMALL)


def test_one_graph_for_all_batch_sizes_forward_and_backward(model):
    graphs = []
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def count(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    compiled = torch.compile(model, fullgraph=True, backend=count)
    for batch in (2, 3, 7):
        images = torch.randn(batch, 3, 16, 16)
        torch._dynamo.mark_dynamic(images, 0)
        got = torch.autograd.grad(compiled(images).square().sum(), trained)
        expected = torch.autograd.grad(model(images).square().sum(), trained)
        for g, e in zip(got, expected, strict=True):
            assert (g - e).abs().max() <= 1e-4 * max(1, e.abs().max())
    assert len(graphs) == 1


def test_the_default_compiler_gives_the_same():
    torch.compiler.reset()
    layer, x = LinearInfSA(32, 4).eval(), torch.randn(2, 17, 32)
    with torch.no_grad():
        assert (torch.compile(layer, fullgraph=True)(x) - layer(x)).abs().max() <= 1e-5
