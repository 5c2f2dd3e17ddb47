"""Runs an attention by itself to verify that it is plain softmax attention, and to see what it returns."""

import copy
from typing import Any

import torch
from torch import Tensor, nn

from infvit.attention import SoftmaxAttention
from infvit.convert.projections import LeftAlone, read_projections

TOLERANCE = 1e-5
"""Largest difference relative to the largest output; transformers' eager attention rounds to float32 inside."""


def returned_by(module: nn.Module, tokens: str) -> int:
    """0 if `module` returns the tokens alone, n if it returns a tuple of n; verifies that it is softmax attention.

    The trial runs on a copy, in float64 on the CPU and with random weights, so that biases initialised to 0 or tiny
    scores cannot hide a difference.

    Raises:
        LeftAlone: if it cannot run on (B, N, D), or does not compute softmax attention.
    """
    generator = torch.Generator().manual_seed(0)
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            twin = _random_twin(module, generator)
            projections = read_projections(twin)
            assert projections is not None
            x = torch.randn(2, 5, projections.dim, generator=generator, dtype=torch.float64)
            expected = SoftmaxAttention(projections.dim, projections.num_heads, projections.qkv_bias).double()
            projections.copy_to(expected)
            # An input that requires gradients keeps torch from its fused inference kernels.
            found, returned = _call(twin, tokens, x.requires_grad_())
            found, softmax = found.detach(), expected(x).detach()
            share = float((found - softmax).abs().max() / softmax.abs().max()) if found.shape == x.shape else torch.inf
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise LeftAlone(f"cannot be tried on tokens (B, N, D): {type(error).__name__}: {line}") from error
    if not share <= TOLERANCE:
        raise LeftAlone(f"not plain softmax attention of its q, k, v, o: differs by {share:.1g} of the largest output")
    return returned


def _random_twin(module: nn.Module, generator: torch.Generator) -> nn.Module:
    twin = copy.deepcopy(module).cpu().double().eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    for part in twin.modules():
        # Flash and flex kernels support some devices and dtypes only.
        config: Any = getattr(part, "config", None)
        if hasattr(config, "_attn_implementation"):
            config._attn_implementation = "eager"
            config.output_attentions = False
    return twin


def _call(module: nn.Module, tokens: str, x: Tensor) -> tuple[Tensor, int]:
    if isinstance(module, nn.MultiheadAttention):
        x = x if module.batch_first else x.transpose(0, 1)
        out, _ = module(x, x, x, need_weights=False)
        return out if module.batch_first else out.transpose(0, 1), 2
    out = module(**{tokens: x})
    return (out[0], len(out)) if isinstance(out, tuple | list) else (out, 0)
