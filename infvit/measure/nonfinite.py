"""Finds the layer of a network at which a batch stops being finite."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def first_nonfinite(net: nn.Module, images: Tensor, labels: Tensor) -> str | None:
    """The first place where a batch (B, 3, h, w), (B,) is not finite: the images, a layer's output, or its gradient.

    None if all is finite. Of nested layers the innermost is named.
    """
    if not images.isfinite().all():
        return "the images of the batch"
    outputs: list[tuple[str, Tensor]] = []

    def record(name: str, layer: nn.Module, _inputs: Any, output: Any) -> None:
        named = f"{name} ({type(layer).__name__})" if name else type(layer).__name__
        parts = output if isinstance(output, list | tuple) else [output]
        outputs.extend((named, part) for part in parts if isinstance(part, Tensor) and part.is_floating_point())

    hooks = [layer.register_forward_hook(partial(record, name)) for name, layer in net.named_modules()]
    try:
        with torch.enable_grad():
            loss = F.cross_entropy(net.forward(images).float(), labels)  # the compiled call would skip the hooks
    finally:
        for hook in hooks:
            hook.remove()
    for name, output in outputs:
        if not output.isfinite().all():
            return f"the output of {name}"
    outputs = [(name, output) for name, output in outputs if output.requires_grad]
    gradients = torch.autograd.grad(loss, [output for _, output in outputs], allow_unused=True)
    for (name, _), gradient in zip(reversed(outputs), reversed(gradients), strict=True):
        if gradient is not None and not gradient.isfinite().all():
            return f"the gradient of the output of {name}"
    return None
