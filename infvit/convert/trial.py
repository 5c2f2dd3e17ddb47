"""Runs an attention by itself to verify that it is plain softmax attention, and to see what it returns."""

import copy
import pickle
from typing import Any

import torch
from timm.models.vision_transformer import Attention as TimmAttention
from torch import Tensor, nn

from infvit.attention import SoftmaxAttention, UnfusedSoftmaxAttention
from infvit.convert.projections import LeftAlone, read_projections

TOLERANCE = 1e-5
"""Largest difference relative to the largest output; transformers' eager attention rounds to float32 inside."""

SHORT, MEDIUM, LONG = 5, 50, 1025
"""Numbers of tokens of every trial, beside those of the model."""

MOST = 2500
"""Largest number of tokens that is tried; softmax may hold N × N weights for each head."""

SOFTMAX = (SoftmaxAttention, UnfusedSoftmaxAttention, nn.MultiheadAttention, TimmAttention)
"""Classes whose forward does not depend on the number of tokens."""


def kind(module: nn.Module) -> object:
    """Equal for modules that compute the same function of their weights: one trial, on random weights, is of all."""
    try:
        return pickle.dumps(copy.deepcopy(module).to("meta"))
    except Exception:  # whatever a lambda, a local class or an attribute of the user raises: of its own kind
        return module


def returned_by(module: nn.Module, tokens: str, counts: set[int]) -> int:
    """0 if `module` returns the tokens alone, n if it returns a tuple of n; verifies that it is softmax attention.

    The trials run on a copy, in float64 on the CPU and with random weights, so that biases initialised to 0 cannot hide
    a difference: on several numbers of tokens, which a window or a prefix needs to show, with scores so small that
    every token counts; with large ones, which a limit needs to show; and in training, where dropout would be lost.

    Args:
        tokens: name of the argument of `module.forward` that takes the tokens.
        counts: numbers of tokens of the model.

    Raises:
        LeftAlone: if it cannot run on (B, N, D), or does not compute softmax attention.
    """
    if max(counts, default=0) > MOST and type(module) not in SOFTMAX:
        raise LeftAlone(f"the model has {max(counts):,} tokens, and trials at most {MOST:,}")
    generator = torch.Generator().manual_seed(0)
    lengths = sorted({SHORT, MEDIUM, LONG} | {N for N in counts if N <= MOST})
    trials = [*((N, 1.0, False) for N in lengths), (MEDIUM, 4.0, False)]
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.random.fork_rng(devices=[]), torch.device("cpu"):
            twin = _random_twin(module, generator)
            projections = read_projections(twin)
            assert projections is not None
            expected = SoftmaxAttention(projections.dim, projections.num_heads, projections.qkv_bias).double()
            projections.copy_to(expected)
            if not projections.attn_drop and not projections.proj_drop:
                trials.append((MEDIUM, 1.0, True))
            for N, scale, training in trials:
                B = 2 if N <= MEDIUM else 1
                x = scale * torch.randn(B, N, projections.dim, generator=generator, dtype=torch.float64)
                # An input that requires gradients keeps torch from its fused inference kernels.
                found, returned = _call(twin.train(training), tokens, x.requires_grad_())
                softmax = expected(x)
                same = found.shape == x.shape
                share = ((found - softmax).abs().max() / softmax.abs().max()).item() if same else torch.inf
                if not share <= TOLERANCE:
                    raise LeftAlone(
                        f"not plain softmax attention of its q, k, v, o: on {N} tokens{' in training' * training} "
                        f"differs by {share:.1g} of the largest output"
                    )
    except LeftAlone:
        raise
    except Exception as error:
        line = str(error).strip().partition("\n")[0]
        raise LeftAlone(f"cannot be tried on tokens (B, N, D): {type(error).__name__}: {line}") from error
    return returned


def _random_twin(module: nn.Module, generator: torch.Generator) -> nn.Module:
    twin = copy.deepcopy(module).cpu().double()
    with torch.no_grad():
        for parameter in twin.parameters():
            fan_in = parameter.shape[-1] if parameter.dim() > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
    for part in twin.modules():
        config: Any = getattr(part, "config", None)
        if hasattr(config, "_attn_implementation"):
            config.output_attentions = False
            if config._attn_implementation != "eager":
                config._attn_implementation = "sdpa"  # flash and flex kernels support some devices and dtypes only
    return twin


def _call(module: nn.Module, tokens: str, x: Tensor) -> tuple[Tensor, int]:
    if isinstance(module, nn.MultiheadAttention):
        x = x if module.batch_first else x.transpose(0, 1)
        out, _ = module(x, x, x, need_weights=False)
        return out if module.batch_first else out.transpose(0, 1), 2
    out = module(**{tokens: x})
    return (out[0], len(out)) if isinstance(out, tuple | list) else (out, 0)
