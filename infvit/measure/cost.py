"""Counts a model's parameters, MACs and FLOPs with torch's FlopCounterMode."""

import copy
import math
import traceback
import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Cost:
    """Counts for one image. FLOPs are 2 per multiply-add; norms, activations and sums are not counted.

    A VisionTransformer with a class token computes only that token after its last attention, and in that attention
    only what the class token needs (`Attention.forward_class_token`). Published counts include all tokens there.

    MACs and FLOPs are None if they depend on the image (PureInfSA iterates the infinite series over more than
    `DENSE_TOKENS` tokens until it converges), or if the model does not run on the meta device.

    `parameters` counts all, frozen ones and gamma (one per head and layer), which the published counts exclude, too.
    """

    parameters: int
    macs_forward: int | None
    flops_forward: int | None
    flops_training: int | None


def cost(model: nn.Module, image_size: int | tuple[int, int], in_chans: int = 3) -> Cost:
    """Counts the model on one image of `image_size` pixels, on the meta device: nothing is computed or allocated.

    `flops_training` is the forward and the backward pass, of matrix products, linear systems, convolutions and fused
    attention. A warning names the class that does not run there.
    """
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    counted = copy.deepcopy(model).to("meta").eval()  # in training mode, batch norm needs more than one image
    image = torch.empty(1, in_chans, height, width, device="meta")
    forward = training = None
    try:
        with FlopCounterMode(display=False, custom_mapping=FORMULAS) as counter:
            output = counted(image)
            forward = _known(counter.get_total_flops())
            output.sum().backward()
            training = _known(counter.get_total_flops())
    except Exception as error:  # whatever an attention of one's own raises where there are no numbers
        found = f"{type(error).__name__}: {' '.join(str(error).split())}"
        warnings.warn(f"FLOPs not counted: {_raised_by(error, model)} fails on the meta device ({found})", stacklevel=2)
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, None if forward is None else forward // 2, forward, training)


def _raised_by(error: Exception, model: nn.Module) -> str:
    """The class of the innermost module, other than torch's, in whose code the error was raised."""
    owners = [frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__)]
    classes = [type(owner) for owner in [model, *owners] if isinstance(owner, nn.Module)]
    return next(c.__name__ for c in reversed(classes) if c is type(model) or not c.__module__.startswith("torch."))


def _known(flops: float) -> int | None:
    return None if math.isnan(flops) else int(flops)


def _convolution_backward(grad: Any, x: Any, weight: Any, *options: Any, **_: Any) -> int:
    """The FLOPs of the forward pass for each requested gradient, of the input and of the weight."""
    transposed, (of_input, of_weight, _bias) = options[4], options[-1]
    forward = 2 * math.prod(x if transposed else grad) * math.prod(weight[1:])
    return forward * (of_input + of_weight)


def _solve(A: Any, B: Any, *_options: Any, **_: Any) -> int:
    """A = L U in 2/3 N³, and both systems for every right-hand side: A (..., N, N), B (..., N, n)."""
    return math.prod(A[:-2]) * (2 * A[-1] ** 3 // 3) + _solve_factored(A, None, B)


def _solve_factored(LU: Any, _pivots: Any, B: Any, *_options: Any, **_: Any) -> int:
    """`_solve` with L and U given, as in its backward pass."""
    return 2 * math.prod(B) * LU[-1]


FORMULAS = {
    # torch's own counts the weight gradient of a grouped convolution as that of a full one (torch 2.14),
    torch.ops.aten.convolution_backward: _convolution_backward,
    # and it has none for linear systems.
    torch.ops.aten._linalg_solve_ex: _solve,
    torch.ops.aten.linalg_lu_solve: _solve_factored,
}
