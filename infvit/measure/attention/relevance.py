"""Gradient-weighted attention: the weights of each block times their gradients (arXiv:2103.15679)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from infvit.attention.tokens import precise
from infvit.errors import UsageError
from infvit.measure.attention.blocks import Backbone


def relevances(net: Backbone, images: Tensor, target: Tensor | None) -> Iterator[Tensor]:
    """Yields (W ⊙ ∂y/∂W)⁺ per block, y the logit of one class per image: (B, H, N, N) or (B, H, N).

    Args:
        net: every operator has an `output`.
        images: model input.
        target: the classes, integers (B,); None for the predicted ones.

    Raises:
        UsageError: if `target` has another shape or an unknown class.
    """
    for found, (tokens, gradient) in zip(net.operators, _backward(net, images, target), strict=True):
        # Lightning evaluates in inference mode, which allows no gradients.
        with torch.inference_mode(False), torch.enable_grad():
            assert found.output is not None
            W = precise(found.weights(tokens)).detach().requires_grad_()
            (by_weight,) = torch.autograd.grad(found.output(W, tokens), W, gradient)
        yield (W.detach() * by_weight).clamp_min(0)


def _backward(net: Backbone, images: Tensor, target: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """The input of each block's attention and the gradient at its output, each (B, N, D)."""
    with torch.inference_mode(False), torch.enable_grad():
        # requires_grad of the images makes autograd record even if all parameters are frozen.
        x = net.embed(images.detach().clone().requires_grad_())
        steps = []
        for i in range(len(net.operators)):
            steps.append(net.step(i, x))
            x = steps[-1].out
        logits = net.logits(x)
        target = logits.argmax(-1) if target is None else target.clone()  # the clone may be saved for backward
        if target.shape != logits.shape[:1] or not ((target >= 0) & (target < logits.shape[-1])).all():
            raise UsageError(
                f"target {target.tolist()} is not one class per image: expected {len(logits)} numbers from 0 to "
                f"{logits.shape[-1] - 1}"
            )
        y = logits.gather(1, target[:, None]).sum()
        attended = [step.attended for step in steps if step.attended is not None]
        gradients = torch.autograd.grad(y, attended, materialize_grads=True)
    return [(step.tokens.detach(), gradient) for step, gradient in zip(steps, gradients, strict=True)]
