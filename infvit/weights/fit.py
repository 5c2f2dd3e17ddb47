"""Fits weights into a model of another image size, patch or number of classes, and reports what became of each."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from timm.layers import resample_patch_embed
from timm.models import adapt_input_conv
from torch import Tensor, nn

from infvit.errors import UsageError
from infvit.positions import resample
from infvit.weights.published import renamed

MOST_PREFIX_TOKENS = 5
"""Class, distillation and register tokens before the positions of a square grid."""


@dataclass
class FitReport:
    """What became of each tensor, by name.

    Attributes:
        taken: as they were.
        resampled: positions, patches and channels that were fitted to the model's.
        new: tensors of the model that stay as initialised.
        left_over: tensors of the weights that the model does not have.
    """

    taken: list[str] = field(default_factory=list)
    resampled: list[str] = field(default_factory=list)
    new: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        words = {"taken": self.taken, "resampled": self.resampled, "new": self.new, "left over": self.left_over}
        return "\n".join(f"  {len(names)} {word}: {_short(names)}" for word, names in words.items() if names)


def _short(names: Iterable[str]) -> str:
    """The names, those that differ in a number once: "blocks.*.norm1.weight (4)"."""
    counts = Counter(re.sub(r"\b\d+\b", "*", name) for name in names)
    return ", ".join(f"{name} ({count})" if count > 1 else name for name, count in counts.items())


def fit(
    tensors: Mapping[str, Tensor], net: nn.Module, same_classes: bool = True
) -> tuple[dict[str, Tensor], FitReport]:
    """Returns those of the tensors that fit `net`, under its names and in its shapes, and a report of all.

    Positions are resampled to the model's grid bicubically, patch embeddings to its patch, and the channels of an
    input convolution are summed or repeated, all as timm does. A head of another shape, or for other classes, is left
    out, and so is any other tensor of another shape.

    Args:
        same_classes: whether the weights are for the classes of `net`; otherwise its head stays new.

    Raises:
        UsageError: if less than half of the model's parameters, without its head, would come from the weights.
    """
    own = net.state_dict()
    given = renamed(tensors, own)
    head = _head(net)
    fitted: dict[str, Tensor] = {}
    report = FitReport(new=[name for name in own if name not in given])
    for name, tensor in given.items():
        if name not in own or not isinstance(tensor, Tensor):
            report.left_over.append(name)
        elif name.startswith(head) and not same_classes:
            report.new.append(name)
        elif tensor.shape == own[name].shape:
            fitted[name] = tensor
            report.taken.append(name)
        elif (other := _resampled(name, tensor, own[name], net)) is not None:
            fitted[name] = other
            report.resampled.append(f"{name} {_sizes(tensor)} → {_sizes(other)}")
        else:
            report.new.append(f"{name} (there {_sizes(tensor)}, here {_sizes(own[name])})")
    backbone = {name for name, _ in net.named_parameters() if not name.startswith(head)}
    share = sum(own[n].numel() for n in backbone & fitted.keys()) / max(sum(own[n].numel() for n in backbone), 1)
    if share < 0.5:
        odd = next((n for n in report.new if " (there" in n), f"{next(iter(given), 'nothing')}, {next(iter(own))}")
        raise UsageError(
            f"{share:.0%} of the model's parameters without its head are in these weights ({odd}): expected weights of "
            "the same architecture; give the model= and size= that they were trained with"
        )
    return fitted, report


def _head(net: nn.Module) -> tuple[str, ...]:
    """The prefixes of the parameters of a model's classifier, as timm names them."""
    cfg = getattr(net, "pretrained_cfg", None) or {}
    names = cfg.get("classifier") or "head"
    return tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))


def _resampled(name: str, tensor: Tensor, own: Tensor, net: nn.Module) -> Tensor | None:
    """The tensor in the shape of `own`, None if it is none of those that can be resampled."""
    if name.endswith("pos_embed") and tensor.ndim == own.ndim == 3 and tensor.shape[2] == own.shape[2]:
        return _positions(tensor, own, net)
    if tensor.ndim == own.ndim == 4 and tensor.shape[0] == own.shape[0]:  # an input convolution
        if tensor.shape[1] != own.shape[1]:
            try:
                tensor = adapt_input_conv(own.shape[1], tensor)
            except NotImplementedError:
                return None
        if name.startswith("patch_embed.") and tensor.shape[2:] != own.shape[2:]:
            tensor = resample_patch_embed(tensor, list(own.shape[2:]))
        return tensor if tensor.shape == own.shape else None
    return None


def _positions(tensor: Tensor, own: Tensor, net: nn.Module) -> Tensor | None:
    """Positions of a square grid behind a few prefix tokens, at the grid of `own` and behind its prefix tokens."""
    grid: tuple[int, int] | None = getattr(net, "grid_size", None) or getattr(
        getattr(net, "patch_embed", None), "grid_size", None
    )
    if grid is None:
        return None
    side = math.isqrt(tensor.shape[1])
    prefix, own_prefix = tensor.shape[1] - side**2, own.shape[1] - grid[0] * grid[1]
    if prefix > MOST_PREFIX_TOKENS or own_prefix < 0:
        return None
    kept = torch.cat([tensor[:, : min(prefix, own_prefix)].to(own), own[:, prefix:own_prefix]], 1)
    patches = resample(tensor[:, prefix:], (side, side), grid, prefix=0)
    return torch.cat([kept, patches.to(own)], 1)


def _sizes(tensor: Tensor) -> str:
    return " × ".join(map(str, tensor.shape))
