"""State dicts of the published InfSA layer (arXiv:2603.00175), whose names differ from the layers here."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from infvit.errors import UsageError


def load_published(module: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Loads published layers into `module`: one `PureInfSA` or `LinearInfSA`, or a model that has them at the same
    names; other entries are loaded unchanged.

    Raises:
        UsageError: if there is no published layer, or one is incomplete.
        RuntimeError: if names or shapes do not match (`nn.Module.load_state_dict`, strict).
    """
    if not published_layers(state_dict):
        raise UsageError(f"no published InfSA layer: no key ends in q_proj.weight among {list(state_dict)[:4]}")
    module.load_state_dict(renamed(state_dict, module.state_dict()))


def published_layers(state_dict: Mapping[str, Tensor]) -> list[str]:
    """The prefixes of the published layers in a state dict."""
    return [name.removesuffix("q_proj.weight") for name in state_dict if name.endswith("q_proj.weight")]


def renamed(state_dict: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict under the names of the layers here, for a model whose state dict is `own`.

    `q_proj`, `k_proj`, `v_proj` become `qkv`; `out_proj` becomes `proj`; `rho_logit` becomes `gamma_logit`, and one
    number that of every head. A missing bias becomes 0, for q, k, v if any of them has one.

    Raises:
        UsageError: if a published layer is incomplete.
    """
    given = dict(state_dict)
    for prefix in published_layers(state_dict):
        parts = [f"{prefix}{part}_proj" for part in ("q", "k", "v", "out")]
        missing = [f"{part.removeprefix(prefix)}.weight" for part in parts if f"{part}.weight" not in given]
        if missing:
            raise UsageError(f"incomplete published layer {prefix.rstrip('.')!r}: {', '.join(missing)} missing")
        weights = [given.pop(f"{part}.weight") for part in parts]
        found = [given.pop(f"{part}.bias", None) for part in parts]
        biases = [w.new_zeros(w.shape[0]) if b is None else b for w, b in zip(weights, found, strict=True)]
        given |= {f"{prefix}qkv.weight": torch.cat(weights[:3]), f"{prefix}proj.weight": weights[3]}
        given[f"{prefix}proj.bias"] = biases[3]
        if any(bias is not None for bias in found[:3]):
            given[f"{prefix}qkv.bias"] = torch.cat(biases[:3])
        if (rho := given.pop(f"{prefix}rho_logit", None)) is not None:
            name, rho = f"{prefix}gamma_logit", rho.reshape(-1)
            given[name] = rho.expand_as(own[name]) if name in own and len(rho) == 1 else rho
    return given
