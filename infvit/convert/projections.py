"""Reads q, k, v, o from the attention modules of timm, torchvision, torch and transformers."""

import re
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


class LeftAlone(Exception):  # noqa: N818 (an outcome for the report, not an error)
    """A self-attention that cannot be converted exactly; the message is the reason."""


@dataclass
class Projections:
    """The projections of one self-attention, weights as torch's `Linear` stores them, (out, in).

    Attributes:
        biases: of q, k, v.
        sources: the tensors of the module that the projections are views of.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    num_heads: int
    biases: tuple[Tensor | None, ...] = (None, None, None)
    out_bias: Tensor | None = None
    attn_drop: float = 0.0
    proj_drop: float = 0.0
    sources: list[Tensor] = field(default_factory=list)

    @property
    def dim(self) -> int:
        """Width D of the tokens."""
        return self.q.shape[1]

    @property
    def qkv_bias(self) -> bool:
        """Whether any of q, k, v has a bias."""
        return any(bias is not None for bias in self.biases)

    def copy_to(self, layer: nn.Module) -> None:
        """Copies the projections into `layer.qkv` and `layer.proj`; a missing bias becomes 0, or no bias for `proj`."""
        if not isinstance(layer.qkv, nn.Linear) or not isinstance(layer.proj, nn.Linear):
            raise TypeError(f"{type(layer).__name__} has no Linear qkv and proj")
        with torch.no_grad():
            layer.qkv.weight.copy_(torch.cat((self.q, self.k, self.v)))
            if self.qkv_bias:
                zero = torch.zeros_like(self.q[:, 0])
                layer.qkv.bias.copy_(torch.cat([zero if bias is None else bias for bias in self.biases]))
            layer.proj.weight.copy_(self.out)
            if self.out_bias is None:
                layer.proj.register_parameter("bias", None)
            else:
                layer.proj.bias.copy_(self.out_bias)

    def check(self) -> None:
        """Raises LeftAlone for grouped queries, cross-attention, heads of unequal width and integer weights."""
        weights = {"q": self.q, "k": self.k, "v": self.v, "o": self.out}
        for name, weight in weights.items():
            if not weight.is_floating_point():
                raise LeftAlone(f"quantised weights ({name} is {weight.dtype})")
        if not self.q.shape[1] == self.k.shape[1] == self.v.shape[1]:
            raise LeftAlone(
                f"cross-attention: q, k, v read tokens {[w.shape[1] for w in (self.q, self.k, self.v)]} wide"
            )
        if not self.q.shape[0] == self.k.shape[0] == self.v.shape[0]:
            raise LeftAlone(f"grouped queries: q, k, v are {[w.shape[0] for w in (self.q, self.k, self.v)]} wide")
        D = self.dim
        if self.q.shape[0] != D or D % self.num_heads:
            raise LeftAlone(f"{self.num_heads} heads that are {self.q.shape[0]} wide together, on tokens {D} wide")
        if tuple(self.out.shape) != (D, D):
            raise LeftAlone(f"changes the width of the tokens, from {D} to {self.out.shape[0]}")


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
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        raise LeftAlone("an additional key and value (add_bias_kv or add_zero_attn)")
    q, k, v = module.in_proj_weight.chunk(3)
    bias = module.in_proj_bias
    return Projections(
        q,
        k,
        v,
        module.out_proj.weight,
        module.num_heads,
        (None, None, None) if bias is None else bias.chunk(3),
        module.out_proj.bias,
        attn_drop=module.dropout,
        sources=_tensors(module.in_proj_weight, bias, module.out_proj.weight, module.out_proj.bias),
    )


def _packed(module: nn.Module) -> Projections | None:
    """timm and torchvision: `qkv` and `proj`; BEiT has q_bias and v_bias beside a qkv without bias."""
    qkv, proj, heads = getattr(module, "qkv", None), getattr(module, "proj", None), _heads(module)
    if not isinstance(qkv, nn.Linear) or not isinstance(proj, nn.Linear) or heads is None:
        return None
    if qkv.weight.shape[0] % 3:
        raise LeftAlone(f"q, k, v of unequal width, {qkv.weight.shape[0]} together")
    q, k, v = qkv.weight.chunk(3)
    separate = tuple(getattr(module, f"{letter}_bias", None) for letter in "qkv")
    if qkv.bias is not None and any(bias is not None for bias in separate):
        raise LeftAlone("biases of q, k, v both packed and separate")
    return Projections(
        q,
        k,
        v,
        proj.weight,
        heads,
        separate if qkv.bias is None else qkv.bias.chunk(3),
        proj.bias,
        attn_drop=_probability(module, "attn_drop"),
        proj_drop=_probability(module, "proj_drop"),
        sources=_tensors(qkv.weight, qkv.bias, *separate, proj.weight, proj.bias),
    )


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
        found = _from_linears(
            [*linears, getattr(output, "dense", None)], _heads(child), drop, _probability(output, "dropout")
        )
        if found is not None:
            return found
    return None


def _from_linears(modules: list[object], heads: int | None, attn_drop: float, proj_drop: float) -> Projections | None:
    linears = [module for module in modules if isinstance(module, nn.Linear)]
    if len(linears) < 4 or heads is None:
        return None
    q, k, v, out = linears
    sources = _tensors(*(tensor for linear in linears for tensor in (linear.weight, linear.bias)))
    biases = (q.bias, k.bias, v.bias)
    return Projections(
        q.weight, k.weight, v.weight, out.weight, heads, biases, out.bias, attn_drop, proj_drop, sources=sources
    )


def _tensors(*tensors: Tensor | None) -> list[Tensor]:
    return [tensor for tensor in tensors if tensor is not None]


def _heads(module: nn.Module) -> int | None:
    for name in ("num_heads", "num_attention_heads"):
        heads = getattr(module, name, None)
        if isinstance(heads, int) and heads > 0:
            return heads
    return None


def _probability(module: object, *names: str) -> float:
    for name in names:
        drop = getattr(module, name, None)
        if isinstance(drop, nn.Dropout):
            return drop.p
        if isinstance(drop, float):
            return drop
    return 0.0


_EXTRA_PARTS = (
    (r"rel_pos|relative_position|position_bias|attention_bias|\brpe", "relative-position bias"),
    (r"rope|rotary|freqs", "rotary embedding"),
    (r"q_norm|k_norm|q_ln|k_ln|qk_norm|norm_q|norm_k|query_norm|key_norm|q_layernorm|k_layernorm", "qk-norm"),
    (r"gamma_logit", "a learned discount: it is not softmax attention"),
    (r"logit_scale|temperature", "a learned scale of the scores"),
    (r"gate", "a gate on the output"),
    (r"norm", "a norm"),
)


def check_holds_nothing_else(module: nn.Module, projections: Projections) -> None:
    """Raises LeftAlone, naming what else there is, unless all parameters and buffers belong to q, k, v and o."""
    known = {id(source) for source in projections.sources}
    held = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    left = [name for name, tensor in held if id(tensor) not in known]
    if not left:
        return
    names = ", ".join(left[:4]) + (f" and {len(left) - 4} more" if len(left) > 4 else "")
    kind = next((kind for pattern, kind in _EXTRA_PARTS if re.search(pattern, " ".join(left))), None)
    raise LeftAlone(f"{kind} ({names})" if kind else f"holds more than q, k, v and o: {names}")
