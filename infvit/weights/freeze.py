"""Which parameters of a model are trained, by patterns of their names."""

from collections.abc import Collection
from fnmatch import fnmatchcase

from timm.layers import freeze_batch_norm_2d
from torch import nn

from infvit.errors import expect


def freeze(net: nn.Module, freeze: Collection[str] = (), train_only: Collection[str] = ()) -> None:
    """Takes parameters of `net` out of training, in place; batch norms that are frozen keep their statistics, too.

    A pattern is the name of a parameter or of a module, or the end of one, with `*` and `[0-5]`: "head", "attn",
    "blocks.[0-5]".

    Args:
        freeze: patterns of what is not trained.
        train_only: patterns of all that is trained; either this or `freeze`.

    Raises:
        UsageError: if both are given, a pattern matches nothing, or nothing is left to train.
    """
    expect(not (freeze and train_only), f"freeze={freeze} and train_only={train_only}", "one of them")
    names = [name for name, _ in net.named_parameters()]
    known = ", ".join(dict.fromkeys(name.partition(".")[0] for name in names))
    for key, patterns in {"freeze": freeze, "train_only": train_only}.items():
        for pattern in patterns:
            found = any(_matches(name, [pattern]) for name in names)
            expect(found, f"{key}={pattern} matches no parameter", f"a part of the model, such as {known}")
    for name, parameter in net.named_parameters():
        if _matches(name, freeze) or (train_only and not _matches(name, train_only)):
            parameter.requires_grad_(False)
    left = not freeze or any(parameter.requires_grad for parameter in net.parameters())
    expect(left, f"freeze={freeze} freezes all", "something to train")
    for name, module in list(net.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
            net.set_submodule(name, freeze_batch_norm_2d(module))


def _matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a pattern is the parameter, a module that holds it, or the end of the name of either."""
    parts = name.split(".")
    above = [".".join(parts[first:last]) for last in range(1, len(parts) + 1) for first in range(last)]
    return any(fnmatchcase(one, pattern) for one in above for pattern in patterns)
