"""Replaces the self-attention inside timm, torchvision, transformers and torch models by an attention of InfViT.

    model = timm.create_model("deit_small_patch16_224", pretrained=True)
    print(convert(model, "linear_infsa"))

A module is converted only if it is verified to be plain softmax attention of its q, k, v and o: it holds nothing else,
takes no unknown argument, and a copy of it agrees with `SoftmaxAttention` on random weights and tokens, as many as its
model has and several other numbers of them. All others are left alone and listed with the reason. An
`nn.MultiheadAttention` that its model calls as cross-attention is converted, and refuses that call. transformers is not
imported here.
"""

import warnings
from collections.abc import Callable, Collection, Iterable
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from infvit.attention import Attention, find
from infvit.attention.signature import constructor_signature
from infvit.convert.adapters import AdaptedAttention, MultiheadAdapter, TokensAdapter
from infvit.convert.projections import LeftAlone
from infvit.convert.report import Report
from infvit.convert.sites import Site, called_with, find_sites
from infvit.convert.trial import kind, returned_by
from infvit.errors import UsageError, expect
from infvit.weights.published import load_published

Patterns = str | Iterable[str] | None

_FROM_MODEL = ("num_heads", "qkv_bias", "attn_drop", "proj_drop")
"""Options that a layer takes over from the attention that it replaces, of those that its constructor takes; the names
are those of `Projections` too."""


def convert(
    model: nn.Module,
    attention: str | Callable[..., nn.Module] = "linear_infsa",
    include: Patterns = None,
    exclude: Patterns = None,
    copy_weights: bool = True,
    **attention_options: Any,
) -> Report:
    """Replaces every self-attention of `model` in place and reports what was replaced and what was not.

    The new layers take over width, heads, biases, dropout, device, dtype, training mode and, with `copy_weights`, the
    weights; a frozen projection stays frozen. They keep the calling convention of what they replace, as `<name>.layer`
    (the layers of InfViT itself are replaced directly). Masks that a layer supports are passed on with torch's meaning
    (True where something is left out): a `key_padding_mask`, and for an `nn.MultiheadAttention` also `attn_mask` and
    `is_causal`. Any other argument raises `UsageError` at the call, as does an `attn_mask` marked as causal for Pure
    InfSA, whose norm is shared by all rows, later ones too.

    Args:
        model: any module that holds attentions; it is changed only if everything could be built.
        attention: a name that `infvit.attention.find` knows, or a class or callable `(dim, num_heads=...)`.
        include: glob patterns on names of modules, such as `"blocks.[0-5]"`; a match includes everything below it.
            None includes everything.
        exclude: glob patterns of modules to leave alone; takes precedence over `include`.
        copy_weights: whether q, k, v, o are copied exactly; otherwise the layers are newly initialised.
        attention_options: passed to the layers, such as `gamma=0.9`; they take precedence over the model's dropout.

    Returns:
        The names converted, and the reason for each attention left alone.

    Raises:
        UsageError: for an unknown attention, options that it does not take, a pattern that matches no attention, or
            a model that is itself an attention.
    """
    make = find(attention) if isinstance(attention, str) else attention
    expect(callable(make), f"attention={attention!r}", "a name, or a class of layers")
    label = attention if isinstance(attention, str) else getattr(getattr(make, "func", make), "__name__", repr(make))
    if taken := {"dim", "num_heads", "qkv_bias"} & attention_options.keys():
        raise UsageError(f"{', '.join(sorted(taken))} comes from the model: leave it out of the options")
    parameters = constructor_signature(make).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    taken_over = [name for name in _FROM_MODEL if takes_any or name in parameters]
    try:
        constructor_signature(make).bind(1, **dict.fromkeys(taken_over), **attention_options)
    except TypeError as error:
        raise UsageError(f"attention {label}: {error}") from None

    sites = list(find_sites(model))
    included, excluded = _patterns("include", include, sites), _patterns("exclude", exclude, sites)
    report = Report(label)
    swaps: list[tuple[Site, nn.Module]] = []
    built: dict[nn.Module, nn.Module] = {}  # by the module, which several blocks may share
    tried: dict[object, int] = {}  # what modules that pass the trial return, by their kind
    for site in sites:
        try:
            if (pattern := _match(site.name, excluded)) is not None:
                raise LeftAlone(f"excluded by {pattern!r}")
            if include is not None and _match(site.name, included) is None:
                raise LeftAlone("not included")
            if site.module not in built:
                built[site.module] = _replacement(site, make, taken_over, copy_weights, attention_options, tried)
            swaps.append((site, built[site.module]))
        except LeftAlone as reason:
            report.left_alone[site.name] = str(reason)
    for site, _ in swaps:
        if not site.ancestors:
            raise UsageError(
                f"the model is itself a {type(site.module).__name__}, which cannot be replaced in place: "
                "convert a module that holds it, e.g. nn.ModuleDict({'attn': model})"
            )
    for site, new in swaps:
        setattr(site.ancestors[-1], site.name.rpartition(".")[2], new)
        for ancestor in site.ancestors:
            if isinstance(ancestor, nn.TransformerEncoder):
                ancestor.use_nested_tensor = False  # nested tensors are for torch's own fused attention only
        report.converted.append(site.name)
    return report


def _patterns(what: str, patterns: Patterns, sites: list[Site]) -> list[str]:
    if patterns is None:
        return []
    patterns = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in patterns:
        if not any(_match(site.name, [pattern]) for site in sites):
            names = ", ".join(site.name for site in sites[:4]) or "none"
            raise UsageError(f"{what}={pattern!r} matches no attention of the model; there are: {names}")
    return patterns


def _match(name: str, patterns: list[str]) -> str | None:
    """The first pattern that matches `name` or a module above it."""
    parts = name.split(".")
    above = [".".join(parts[:n]) for n in range(1, len(parts) + 1)]
    return next((pattern for pattern in patterns if any(fnmatchcase(n, pattern) for n in above)), None)


def _replacement(
    site: Site,
    make: Callable[..., nn.Module],
    taken_over: Collection[str],
    copy_weights: bool,
    options: dict[str, Any],
    tried: dict[object, int],
) -> nn.Module:
    module, projections = site.module, site.projections
    if projections is None:
        raise LeftAlone(site.reason)
    names = called_with(site)
    trial = kind(module), frozenset(counts := site.token_counts())
    if trial not in tried:
        tried[trial] = returned_by(module, names[0], counts)
    arguments = {name: getattr(projections, name) for name in taken_over} | options
    for drop in ("attn_drop", "proj_drop"):
        if drop not in arguments and (rate := getattr(projections, drop)):
            named = getattr(make, "__name__", make)
            warnings.warn(f"{named} takes no {drop}: it trains without the model's {rate:g}", stacklevel=3)
    like = projections.weights[0]
    layer = make(projections.dim, **arguments).to(like.device, like.dtype).train(module.training)
    if copy_weights:
        try:
            projections.copy_to(layer)
        except (AttributeError, TypeError, RuntimeError) as error:
            raise UsageError(
                f"the weights of {site.name} do not fit {type(layer).__name__} ({error}): it needs Linear qkv and proj "
                "of timm's shapes, or copy_weights=False"
            ) from error
        if not any(parameter.requires_grad for parameter in module.parameters()):
            layer.qkv.requires_grad_(False)
            layer.proj.requires_grad_(False)
    if isinstance(module, Attention):
        return layer
    if isinstance(module, nn.MultiheadAttention):
        return MultiheadAdapter(layer, site.name, projections.num_heads, module.batch_first)
    return TokensAdapter(layer, site.name, projections.num_heads, names, tried[trial], getattr(module, "config", None))


__all__ = ["AdaptedAttention", "Report", "convert", "load_published"]
