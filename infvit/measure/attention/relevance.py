"""Gradient-weighted attention: the weights of each block times their gradients (arXiv:2103.15679)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from infvit.attention.tokens import precise
from infvit.measure.attention.blocks import Backbone


def relevances(net: Backbone, images: Tensor) -> Iterator[Tensor]:
    """Yields (W ⊙ ∂y/∂W)⁺ per block, y the logit of each image's predicted class: (B, H, N, N) or (B, H, N).

    Every operator of `net` needs an `output`.
    """
    # Lightning evaluates in inference mode, which allows no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        # requires_grad of the images makes autograd record even if all parameters are frozen.
        steps = [step for _, step in net.run(net.embed(images.detach().clone().requires_grad_()))]
        y = net.logits(steps[-1].out).max(-1).values.sum()
        attended = [step.attended for step in steps if step.attended is not None]
        gradients = torch.autograd.grad(y, attended, materialize_grads=True)
    for found, step, gradient in zip(net.operators, steps, gradients, strict=True):
        with torch.inference_mode(False), torch.enable_grad():
            assert found.output is not None
            tokens = step.tokens.detach()
            W = precise(found.weights(tokens)).detach().requires_grad_()
            (by_weight,) = torch.autograd.grad(found.output(W, tokens), W, gradient)
        yield (W.detach() * by_weight).clamp_min(0)
