"""Reads q, k, v, o from the attention modules of timm, torchvision, torch and transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


class LeftAlone(Exception):  # noqa: N818 (an outcome for the report, not an error)
    """A self-attention that cannot be converted exactly; the message is the reason."""


@dataclass
class Projections:
    """The projections of one self-attention.

    Attributes:
        weights, biases: of q, k, v; weights are (out, in), as torch's `Linear` stores them.
        packed: the tensors of the module that `weights` and `biases` are views of, if they are.
    """

    weights: Sequence[Tensor]
    biases: Sequence[Tensor | None]
    out: nn.Linear
    num_heads: int
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    packed: Sequence[Tensor | None] = ()

    @property
    def dim(self) -> int:
        """Width D of the tokens."""
        return self.weights[0].shape[1]

    @property
    def qkv_bias(self) -> bool:
        """Whether any of q, k, v has a bias."""
        return any(bias is not None for bias in self.biases)

    def copy_to(self, layer: Any) -> None:
        """Copies the projections into `layer.qkv` and `layer.proj`; a missing bias becomes 0, or no bias for `proj`."""
        with torch.no_grad():
            layer.qkv.weight.copy_(torch.cat(tuple(self.weights)))
            if self.qkv_bias:
                zero = torch.zeros_like(self.weights[0][:, 0])
                layer.qkv.bias.copy_(torch.cat([zero if bias is None else bias for bias in self.biases]))
            elif layer.qkv.bias is not None:  # of a class without the option qkv_bias
                layer.qkv.bias.zero_()
            layer.proj.weight.copy_(self.out.weight)
            if self.out.bias is None:
                layer.proj.register_parameter("bias", None)
            else:
                layer.proj.bias.copy_(self.out.bias)

    def check(self) -> None:
        """Raises LeftAlone for grouped queries, cross-attention, heads of unequal width and integer weights."""
        for name, weight in zip("qkvo", (*self.weights, self.out.weight), strict=True):
            if not weight.is_floating_point():
                raise LeftAlone(f"quantised weights ({name} is {weight.dtype})")
        widths, tokens = ([weight.shape[axis] for weight in self.weights] for axis in (0, 1))
        if len(set(tokens)) > 1:
            raise LeftAlone(f"cross-attention: q, k, v read tokens {tokens} wide")
        if len(set(widths)) > 1:
            raise LeftAlone(f"grouped queries: q, k, v are {widths} wide")
        D = self.dim
        if widths[0] != D or D % self.num_heads:
            raise LeftAlone(f"{self.num_heads} heads that are {widths[0]} wide together, on tokens {D} wide")
        if tuple(self.out.weight.shape) != (D, D):
            raise LeftAlone(f"changes the width of the tokens, from {D} to {self.out.out_features}")


def read_projections(module: nn.Module) -> Projections | None:
    """The projections of `module`, or None if its layout is unknown.

    Raises:
        LeftAlone: if the layout is known but its shapes cannot be converted.
    """
    for read in (_multihead, _packed, _separate, _nested):
        projections = read(module)
        if projections is not None:
            projections.check()
            return projections
    return None


def _multihead(module: nn.Module) -> Projections | None:
    """torch: one packed matrix, or three if keys and values have other widths than queries."""
    if not isinstance(module, nn.MultiheadAttention):
        return None
    if module.in_proj_weight is None:
        raise LeftAlone(f"cross-attention: keys are {module.kdim} and values {module.vdim} wide, q {module.embed_dim}")
    if module.bias_k is not None or module.add_zero_attn:
        raise LeftAlone("an additional key and value (add_bias_kv or add_zero_attn)")
    packed = module.in_proj_weight, module.in_proj_bias
    weights, biases = (_thirds(tensor) for tensor in packed)
    return Projections(weights, biases, module.out_proj, module.num_heads, module.dropout, packed=packed)


def _packed(module: nn.Module) -> Projections | None:
    """timm and torchvision: `qkv` and `proj`; BEiT has q_bias and v_bias beside a qkv without bias."""
    qkv, proj, heads = getattr(module, "qkv", None), getattr(module, "proj", None), _heads(module)
    if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear) or heads is None:
        return None
    biases = [getattr(module, f"{letter}_bias", None) for letter in "qkv"] if qkv.bias is None else _thirds(qkv.bias)
    drops = _probability(module, "attn_drop"), _probability(module, "proj_drop")
    return Projections(_thirds(qkv.weight), biases, proj, heads, *drops, packed=(qkv.weight, qkv.bias))


def _separate(module: nn.Module) -> Projections | None:
    """transformers: `q_proj`, `k_proj`, `v_proj`, and `out_proj` (CLIP) or `o_proj`."""
    linears = [getattr(module, f"{letter}_proj", None) for letter in "qkv"]
    out = next((o for name in ("out_proj", "o_proj", "proj") if (o := getattr(module, name, None)) is not None), None)
    return _from_linears([*linears, out], _heads(module), _probability(module, "attention_dropout", "dropout"), 0.0)


def _nested(module: nn.Module) -> Projections | None:
    """transformers: `query`, `key`, `value` in a child module, and `output.dense` beside it."""
    output = getattr(module, "output", None)
    for child in module.children():
        linears = [getattr(child, name, None) for name in ("query", "key", "value")]
        drop = _probability(child, "dropout", "dropout_prob", "attention_probs_dropout_prob")
        dense = getattr(output, "dense", None)
        if found := _from_linears([*linears, dense], _heads(child), drop, _probability(output, "dropout")):
            return found
    return None


def _from_linears(modules: list[object], heads: int | None, attn_drop: float, proj_drop: float) -> Projections | None:
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    if len(linears) < 4 or heads is None:
        return None
    *qkv, out = linears
    return Projections([p.weight for p in qkv], [p.bias for p in qkv], out, heads, attn_drop, proj_drop)


def _thirds(tensor: Tensor | None) -> Sequence[Any]:
    return (None, None, None) if tensor is None else tensor.chunk(3)


def _heads(module: nn.Module) -> int | None:
    found = (getattr(module, name, None) for name in ("num_heads", "num_attention_heads"))
    return next((heads for heads in found if isinstance(heads, int) and heads > 0), None)


def _probability(module: object, *names: str) -> float:
    """The rate of the first `Dropout` or number under one of the names."""
    parts = (getattr(module, name, None) for name in names)
    drops = (part.p if isinstance(part, nn.Dropout) else part for part in parts)
    return next((drop for drop in drops if isinstance(drop, float)), 0.0)


def check_holds_nothing_else(module: nn.Module, projections: Projections) -> None:
    """Raises LeftAlone, which names the others, unless all tensors belong to q, k, v and o."""
    own = (*projections.weights, *projections.biases, *projections.packed, projections.out.weight, projections.out.bias)
    known = {id(tensor) for tensor in own}
    held: list[tuple[str, object]] = [*module.named_parameters(remove_duplicate=False)]
    held += module.named_buffers(remove_duplicate=False)
    held += [pair for part in module.modules() for pair in vars(part).items()]
    left = [name for name, value in held if isinstance(value, Tensor) and id(value) not in known]
    if left:
        raise LeftAlone(f"holds more than q, k, v and o: {', '.join(left[:4])}{', …' * (len(left) > 4)}")
