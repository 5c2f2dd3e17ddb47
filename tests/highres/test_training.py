"""A training step in chunks against the dense model's: the same logits and the same gradients."""

import pytest
import torch
from torch.nn import functional as F

from infvit.highres import ChunkedTraining
from tests.highres.conftest import small_model


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
