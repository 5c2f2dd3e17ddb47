"""Loads state dicts of the published InfSA layer (arXiv:2603.00175), whose names differ from the layers here."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from infvit.errors import UsageError


def from_published(state_dict: Mapping[str, Tensor], num_heads: int | None = None) -> dict[str, Tensor]:
    """Renames and packs every published layer in `state_dict`, under any prefix; other entries are unchanged.

    `q_proj`, `k_proj`, `v_proj` become `qkv`; `out_proj` becomes `proj`; `rho_logit` becomes `gamma_logit`. A missing
    bias becomes 0, for q, k, v if any of them has one.

    Args:
        state_dict: tensors by name.
        num_heads: heads of the layers; a scalar `rho_logit` is expanded to them.

    Raises:
        UsageError: if there is no published layer, one is incomplete, or the number of heads is missing or wrong.
    """
    return _renamed(state_dict, lambda _: num_heads)


def load_published(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads published layers into `module`: one `PureInfSA` or `LinearInfSA`, or a model that has them at the same
    names. Heads are read from the module.

    Raises:
        UsageError: as `from_published`.
        RuntimeError: if names or shapes do not match (`nn.Module.load_state_dict`, strict).
    """
    layers = dict(module.named_modules())
    module.load_state_dict(_renamed(state_dict, lambda name: getattr(layers.get(name), "num_heads", None)))


def _renamed(state_dict: Mapping[str, Tensor], heads_of: Callable[[str], int | None]) -> dict[str, Tensor]:
    given = dict(state_dict)
    prefixes = [name.removesuffix("q_proj.weight") for name in given if name.endswith("q_proj.weight")]
    if not prefixes:
        raise UsageError(f"no published InfSA layer: no key ends in q_proj.weight among {list(given)[:4]}")
    for prefix in prefixes:
        name = prefix.rstrip(".")
        parts = [f"{prefix}{part}_proj" for part in ("q", "k", "v", "out")]
        missing = [f"{part.removeprefix(prefix)}.weight" for part in parts if f"{part}.weight" not in given]
        if missing:
            raise UsageError(f"incomplete published layer {name!r}: {', '.join(missing)} missing")
        weights = [given.pop(f"{part}.weight") for part in parts]
        found = [given.pop(f"{part}.bias", None) for part in parts]
        biases = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, found, strict=True)]
        given |= {f"{prefix}qkv.weight": torch.cat(weights[:3]), f"{prefix}proj.weight": weights[3]}
        given[f"{prefix}proj.bias"] = biases[3]
        if any(bias is not None for bias in found[:3]):
            given[f"{prefix}qkv.bias"] = torch.cat(biases[:3])
        rho = given.pop(f"{prefix}rho_logit", None)
        if rho is not None:
            given[f"{prefix}gamma_logit"] = _per_head(rho.reshape(-1), heads_of(name), name)
    return given


def _per_head(rho: Tensor, num_heads: int | None, name: str) -> Tensor:
    if num_heads is None and rho.numel() == 1:
        raise UsageError(
            f"rho_logit of {name or 'the layer'} is one number for all heads: pass num_heads, "
            "or use load_published(layer, state_dict)"
        )
    num_heads = num_heads or rho.numel()
    if rho.numel() not in (1, num_heads):
        raise UsageError(f"rho_logit of {name!r} has {rho.numel()} numbers, expected 1 or {num_heads}")
    return rho.expand(num_heads).clone()
