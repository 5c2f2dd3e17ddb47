"""What a model costs by counting: parameters, MACs and FLOPs, through torch's own counter."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from infvit.attention import DiscountedAttention


@dataclass(frozen=True)
class Cost:
    """Counts of what runs for one image. FLOPs are 2 per multiply-add; norms, activations and sums are not counted.

    A VisionTransformer with a class token computes nothing else behind its last attention, so it counts less than the
    same model with all its tokens there, by which published counts go.

    `parameters` counts all that is learned; `discounts` is the part of it that is gamma (one per head and layer),
    which the published counts leave out.
    """

    parameters: int
    discounts: int
    macs_forward: int
    flops_forward: int
    flops_training: int


def cost(model: nn.Module, image_size: int | tuple[int, int], in_chans: int = 3) -> Cost:
    """Counts the model on one image of `image_size` pixels, on the meta device: nothing is computed or allocated.

    `flops_training` is the forward and the backward pass, of matrix products, convolutions and fused attention.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    counted = copy.deepcopy(model).to("meta").eval()  # in training, batch norm wants more than one image
    image = torch.empty(1, in_chans, height, width, device="meta")
    with FlopCounterMode(display=False, custom_mapping={CONVOLUTION_BACKWARD: _convolution_backward}) as counter:
        output = counted(image)
        forward = counter.get_total_flops()
        output.sum().backward()
        training = counter.get_total_flops()
    discounts = sum(m.gamma_logit.numel() for m in model.modules() if isinstance(m, DiscountedAttention))
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return Cost(parameters, discounts, forward // 2, forward, training)


CONVOLUTION_BACKWARD = torch.ops.aten.convolution_backward
"""torch's own formula takes the weight's gradient of a grouped convolution for that of a full one (torch 2.14)."""


def _convolution_backward(grad: Any, x: Any, weight: Any, *options: Any, **_: Any) -> int:
    """As many FLOPs as forward for each gradient that is asked for, of the input and of the weight."""
    transposed, (of_input, of_weight, _bias) = options[4], options[-1]
    forward = 2 * math.prod(x if transposed else grad) * math.prod(weight[1:])
    return forward * (of_input + of_weight)
