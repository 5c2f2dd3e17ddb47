"""Whole models of timm, to train under the same recipe as the attentions."""

import copy
import difflib
import re
import warnings
from typing import Any

import timm
import torch
from torch import nn

from infvit.errors import UsageError


def timm_model(name: str, num_classes: int, img_size: int, drop_path_rate: float = 0.0, **options: Any) -> nn.Module:
    """timm's model `name`, untrained: (B, 3, img_size, img_size) → logits (B, num_classes).

    Args:
        name: as in `timm.list_models()`.
        img_size: side of the images in pixels; convolutional models, which are not told, take any that is large enough.
        drop_path_rate: stochastic depth; a warning says where a model has none.
        options: further arguments of timm's model, e.g. `patch_size` or `depth`.

    Raises:
        UsageError: if timm has no such model, or the model takes no such option or image size.
    """
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5] or difflib.get_close_matches(name, timm.list_models(), 5, 0.4)
        raise UsageError(
            f"model.name={name} is no model of timm {timm.__version__}: "
            + (f"did you mean {', '.join(near)}?" if near else "timm.list_models() shows them all")
        )
    net = _create(name, options, num_classes, {"img_size": img_size, "drop_path_rate": drop_path_rate})
    try:
        copy.deepcopy(net).to("meta").eval()(torch.empty(1, 3, img_size, img_size, device="meta"))
    except (RuntimeError, AssertionError, ZeroDivisionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{name} cannot take images of {img_size} pixels ({reason}): change size.image_size"
        ) from error
    return net


def _create(name: str, options: dict[str, Any], num_classes: int, offered: dict[str, Any]) -> nn.Module:
    """The model with `options` and what it takes of `offered`; timm tells only by refusing."""
    try:
        return timm.create_model(name, num_classes=num_classes, **offered, **options)
    except TypeError as error:
        refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
        if refused is None:
            raise
        if refused[1] in options:
            raise UsageError(f"{name} takes no option {refused[1]}: leave out model.net.{refused[1]}") from error
        if refused[1] == "drop_path_rate" and offered["drop_path_rate"]:
            warnings.warn(f"{name} has no stochastic depth: it trains without", stacklevel=3)
        return _create(name, options, num_classes, {k: v for k, v in offered.items() if k != refused[1]})
    except AssertionError as error:
        raise UsageError(f"{name} cannot be made with {offered | options}: {error or 'timm refuses'}") from error
