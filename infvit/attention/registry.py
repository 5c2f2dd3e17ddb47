"""Attentions by name: those of this package, and others that code registers or that installed packages bring."""

import functools
from importlib.metadata import entry_points
from typing import Any

from torch import nn

from infvit.errors import UsageError, expect

ATTENTIONS: dict[str, type[nn.Module]] = {}
"""Every attention that is known by a name; `infvit.attention` imports those of this package."""

GROUP = "infvit.attentions"
"""The entry point group in which an installed package names its attentions, as `mine = "mine_attn:Mine"`."""


def register(name: str, attention: type[nn.Module] | None = None) -> Any:
    """Makes a class known as `name` to `convert`, `save_pretrained` and timm; `@register("mine")` decorates it.

    Args:
        name: as in `ATTENTIONS`.
        attention: called as `attention(dim, num_heads=...)`, its instances as `layer(x)`: (B, N, D) → (B, N, D).

    Raises:
        UsageError: if the name belongs to another class, or `attention` is not a class of modules.
    """
    if attention is None:
        return functools.partial(register, name)
    module = isinstance(attention, type) and issubclass(attention, nn.Module)
    expect(module, f"attention {name!r} is {attention!r}", "a subclass of torch.nn.Module")
    known = ATTENTIONS.get(name, attention)
    if full_name(known) != full_name(attention):
        raise UsageError(f"attention {name!r} is {full_name(known)}: give {full_name(attention)} another name")
    ATTENTIONS[name] = attention
    return attention


def find(name: str) -> type[nn.Module]:
    """The attention of that name; if it is not in `ATTENTIONS`, that of an entry point, whose package is imported.

    Raises:
        UsageError: if there is none, its package cannot be imported, or two packages give the name to two classes.
    """
    for entry in () if name in ATTENTIONS else entry_points(group=GROUP, name=name):
        try:
            attention = entry.load()
        except Exception as error:  # whatever the import of a package raises
            raise UsageError(
                f"attention {name!r} is {entry.value} of {entry.dist and entry.dist.name}, which cannot be imported "
                f"({type(error).__name__}: {error}): repair or uninstall it"
            ) from error
        register(name, attention)
    if name not in ATTENTIONS:
        known = ", ".join(sorted({*ATTENTIONS, *entry_points(group=GROUP).names}))
        raise UsageError(f"attention={name!r} is not one of {known}: infvit.attention.register(name, Class) adds one")
    return ATTENTIONS[name]


def name_of(attention: str) -> str | None:
    """The name of the class with that full name, which an entry point of its package may give; None without one."""
    for entry in entry_points(group=GROUP):
        if entry.module.partition(".")[0] == attention.partition(".")[0]:
            find(entry.name)
    return next((name for name, known in ATTENTIONS.items() if full_name(known) == attention), None)


def full_name(attention: Any) -> str:
    """Module and name of a class or function."""
    return f"{attention.__module__}.{attention.__qualname__}"
