"""Loads state dicts of the published InfSA layer (arXiv:2603.00175), whose names differ from the layers here."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from infvit.errors import UsageError

_PROJECTIONS = ("q_proj", "k_proj", "v_proj")


def from_published(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Tensor]:
    """Renames and packs every published layer in `state_dict`, under any prefix; other entries are unchanged.

    `q_proj`, `k_proj`, `v_proj` become `qkv`; `out_proj` becomes `proj`; `rho_logit` becomes `gamma_logit`. A missing
    bias becomes 0 if q, k, v have any.

    Args:
        state_dict: tensors by name.
        num_heads: heads of the layers; a scalar `rho_logit` is expanded to them.

    Raises:
        UsageError: if there is no published layer, one is incomplete, or the number of heads is missing or wrong.
    """
    given = dict(state_dict)
    prefixes = [name.removesuffix("q_proj.weight") for name in given if name.endswith("q_proj.weight")]
    if not prefixes:
        raise UsageError(f"no published InfSA layer: no key ends in q_proj.weight among {list(given)[:4]}")
    for prefix in prefixes:
        missing = [n for n in ("k_proj.weight", "v_proj.weight", "out_proj.weight") if prefix + n not in given]
        if missing:
            raise UsageError(f"incomplete published layer {prefix.rstrip('.')!r}: {', '.join(missing)} missing")
        weights = [given.pop(f"{prefix}{name}.weight") for name in _PROJECTIONS]
        biases = [given.pop(f"{prefix}{name}.bias", None) for name in _PROJECTIONS]
        given[f"{prefix}qkv.weight"] = torch.cat(weights)
        if any(bias is not None for bias in biases):
            pairs = zip(weights, biases, strict=True)
            given[f"{prefix}qkv.bias"] = torch.cat([w.new_zeros(w.shape[0]) if b is None else b for w, b in pairs])
        out = given.pop(f"{prefix}out_proj.weight")
        bias = given.pop(f"{prefix}out_proj.bias", None)
        given[f"{prefix}proj.weight"] = out
        given[f"{prefix}proj.bias"] = out.new_zeros(out.shape[0]) if bias is None else bias
        rho = given.pop(f"{prefix}rho_logit", None)
        if rho is not None:
            given[f"{prefix}gamma_logit"] = _per_head(rho.reshape(-1), num_heads, prefix)
    return given


def load_published(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads published layers into `module`: one `PureInfSA` or `LinearInfSA`, or a model that has them at the same
    names. Heads are read from the module.

    Raises:
        UsageError: as `from_published`.
        RuntimeError: if names or shapes do not match (`nn.Module.load_state_dict`, strict).
    """
    named = {f"{name}." if name else "": m for name, m in module.named_modules()}
    expanded: dict[str, Tensor] = {}
    for name, tensor in state_dict.items():
        owner = named.get(name.removesuffix("rho_logit")) if name.endswith("rho_logit") else None
        heads = getattr(owner, "num_heads", None)
        expanded[name] = tensor if heads is None else _per_head(tensor.reshape(-1), heads, name)
    module.load_state_dict(from_published(expanded))


def _per_head(rho: Tensor, num_heads: int | None, prefix: str) -> Tensor:
    if num_heads is None:
        if rho.numel() == 1:
            raise UsageError(
                f"rho_logit of {prefix.rstrip('.') or 'the layer'} is one number for all heads: pass num_heads, "
                "or use load_published(layer, state_dict)"
            )
        return rho
    if rho.numel() not in (1, num_heads):
        raise UsageError(f"rho_logit of {prefix.rstrip('.')!r} has {rho.numel()} numbers, expected 1 or {num_heads}")
    return rho.expand(num_heads).clone()
