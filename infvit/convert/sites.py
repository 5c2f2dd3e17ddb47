"""Finds the attentions of a model and the arguments that each is called with."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn

from infvit.convert.adapters import MAY_BE_REFUSED, WITHOUT_EFFECT, AdaptedAttention
from infvit.convert.projections import LeftAlone, Projections, check_holds_nothing_else, read_projections


@dataclass
class Site:
    """One attention of a model: the module, its ancestors, and its projections or the reason why it has none."""

    name: str
    module: nn.Module
    ancestors: tuple[nn.Module, ...]
    projections: Projections | None = None
    reason: str = ""

    def token_counts(self) -> set[int]:
        """Numbers of tokens that its model is made for, by the position embeddings; empty if it has none."""
        D = self.projections.dim if self.projections else 1
        for owner in reversed(self.ancestors):
            positions = [t for name, t in owner.state_dict().items() if re.search("pos_?emb|position", name)]
            if counts := {t.numel() // D for t in positions if t.numel() % D == 0}:
                return counts | {N + getattr(owner, "num_prefix_tokens", 1) for N in counts}
        return set()


def find_sites(module: nn.Module, name: str = "", ancestors: tuple[nn.Module, ...] = ()) -> Iterator[Site]:
    """Every attention below `module`, in order, including those that cannot be converted."""
    site = Site(name, module, ancestors)
    try:
        if isinstance(module, AdaptedAttention):
            raise LeftAlone(f"already converted to {type(module.layer).__name__}")
        site.projections = read_projections(module)
    except LeftAlone as reason:
        site.reason = str(reason)
    if site.projections is not None or site.reason:
        yield site
        return
    parts = [(f"{name}.{part}".lstrip("."), child) for part, child in module._modules.items() if child is not None]
    inside = [found for part, child in parts for found in find_sites(child, part, (*ancestors, module))]
    yield from inside
    # Better one name too many in the report than one too few.
    named = re.search(r"Attention|Attn|MHSA|MHA", type(module).__name__)
    if not inside and (named or any(hasattr(module, n) for n in ("fused_attn", "num_heads", "num_attention_heads"))):
        children = ", ".join(module._modules) or "no submodules"
        site.reason = f"{type(module).__name__} ({children}) has an unknown layout"
        yield site


def called_with(site: Site) -> list[str]:
    """The argument names of a site's forward, the tokens first.

    Raises:
        LeftAlone: if it takes, or is known to be called with, an argument that a converted layer does not support.
    """
    module = site.module
    assert site.projections is not None
    check_holds_nothing_else(module, site.projections)
    _check_flags(site)
    parameters = inspect.signature(module.forward).parameters.values()
    names = [p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    if isinstance(module, nn.MultiheadAttention):
        return names
    unknown = [name for name in names[1:] if name not in WITHOUT_EFFECT and not MAY_BE_REFUSED.fullmatch(name)]
    if unknown or not names:
        raise LeftAlone(f"its forward takes more than tokens and masks: {', '.join(unknown) or 'no names'}")
    return names


def _check_flags(site: Site) -> None:
    for flag in ("is_causal", "causal", "is_decoder", "is_cross_attention"):
        if getattr(site.module, flag, False) is True:
            raise LeftAlone(f"causal or cross-attention ({flag} is true)")
    if any(part._forward_hooks or part._forward_pre_hooks for part in site.module.modules()):
        raise LeftAlone("has hooks, which would be lost: register them after the conversion")
    parent = site.ancestors[-1] if site.ancestors else None
    if isinstance(parent, nn.TransformerDecoderLayer):
        raise LeftAlone("of a decoder, which is called with causal masks and with the memory of an encoder")
    if isinstance(getattr(parent, "attn_mask", None), Tensor):
        raise LeftAlone("its block holds an attn_mask")
    # BEiT has a bias in the block, or one for all blocks, and passes it as an argument at every call.
    for owner in site.ancestors:
        for name, part in owner.named_children():
            if re.search("rel(ative)?_?pos", f"{name} {type(part).__name__}", re.IGNORECASE):
                raise LeftAlone(f"relative-position bias, held by its {type(owner).__name__} ({name})")
    owners = (site.module, *reversed(site.ancestors))
    config = next((c for owner in owners if hasattr(c := getattr(owner, "config", None), "model_type")), None)
    if hasattr(config, "vocab_size") and not any(hasattr(config, n) for n in ("image_size", "patch_size")):
        raise LeftAlone(f"text ({type(config).__name__}): its attention is called with padding or causal masks")
