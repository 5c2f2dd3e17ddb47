"""Whole models of timm: untrained, to train under the same recipe as the attentions, and with published weights."""

import copy
import difflib
import re
import textwrap
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from timm.data import resolve_data_config
from timm.models import PretrainedCfg, get_pretrained_cfg
from torch import Tensor, nn

from infvit.class_names import is_imagenet, synsets
from infvit.errors import UsageError, expect


def timm_model(name: str, num_classes: int, img_size: int, drop_path_rate: float = 0.0, **options: Any) -> nn.Module:
    """Returns timm's model `name`, untrained: (B, 3, img_size, img_size) → logits (B, num_classes).

    Args:
        name: as in `timm.list_models()`.
        img_size: side of the images in pixels; not passed to convolutional models, which take any large enough image.
        drop_path_rate: stochastic depth; a warning says where a model has none.
        options: further arguments of timm's model, e.g. `patch_size` or `depth`.

    Raises:
        UsageError: if timm has no such model, or the model takes no such option or image size.
    """
    _check_name(name)
    loads = {"checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"} & options.keys()
    expect(not loads, f"model.net.{' model.net.'.join(loads)} loads a file", "an untrained model")
    net = _create(name, options, num_classes, {"img_size": img_size, "drop_path_rate": drop_path_rate})
    try:
        copy.deepcopy(net).to("meta").eval()(torch.empty(1, 3, img_size, img_size, device="meta"))
    except (RuntimeError, AssertionError, ZeroDivisionError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{name} cannot take images of {img_size} pixels ({reason}): change size.image_size"
        ) from error
    return net


def published_view(name: str) -> dict[str, Any]:
    """Returns how timm's model `name` was trained to see an image: "view", "mean" and "std" of a data module.

    "view" holds the size, crop and interpolation of training; for some models timm's own tables are at a larger size
    ("test_input_size").

    Args:
        name: as in `timm.list_pretrained()`, with the tag of its weights, or without for the default ones.
    """
    found = resolve_data_config(pretrained_cfg=_pretrained_cfg(name).to_dict())
    view = {"size": found["input_size"][-1], "crop_ratio": found["crop_pct"]}
    view |= {key: found[key] for key in ("interpolation", "crop_mode", "mean")}
    return {"view": view, "mean": found["mean"], "std": found["std"]}


def pretrained(name: str, classes: Sequence[str], weights: str | None = None) -> nn.Module:
    """Returns timm's model `name` with trained weights: (B, 3, h, w) → logits (B, classes), in evaluation mode.

    Args:
        name: as in `timm.list_pretrained()`.
        classes: of the data, in the order of the labels.
        weights: a file (.safetensors, .pth); None downloads the published weights, which are for ImageNet-1K.

    Raises:
        UsageError: if the weights are for other classes, cannot be downloaded, or do not fit this model.
    """
    cfg = _pretrained_cfg(name)
    source: dict[str, Any] = {}
    if weights is not None:
        if not Path(weights).is_file():
            raise UsageError(f"weights={weights} does not exist: give a file of weights of {name}")
        source = {"file": weights, "num_classes": len(classes)}
    elif cfg.num_classes != 1000 or not is_imagenet(classes):
        raise UsageError(
            f"the published weights of {name} are for {cfg.num_classes:,} classes, the data have {len(classes):,} "
            f"({classes[0]}, ...): expected ImageNet-1K's 1,000 by both; take another model or data=, or give "
            "weights=FILE trained on these classes"
        )
    else:
        print(f"weights of {name}: from the cache, or from huggingface.co", flush=True)
    try:
        net = timm.create_model(name, pretrained=True, num_classes=len(classes), pretrained_cfg_overlay=source)
    except Exception as error:  # whatever the file system, the network, pickle, safetensors or torch raise
        if weights is None:
            raise UsageError(f"{_not_downloaded(name, error)}, or give weights=FILE") from error
        reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")
        raise UsageError(f"{weights} holds no weights of {name} for {len(classes)} classes: {reason}") from error
    return net.eval()


def pretrained_weights(name: str) -> tuple[dict[str, Tensor], list[str] | None]:
    """The published weights of timm's model `name`, and the classes that they are for, None if not ImageNet-1K's.

    Raises:
        UsageError: if timm has no such weights, or they cannot be downloaded.
    """
    classes = synsets() if _pretrained_cfg(name).num_classes == 1000 else None
    print(f"weights of {name}: from the cache, or from huggingface.co", flush=True)
    try:
        return timm.create_model(name, pretrained=True).state_dict(), classes
    except Exception as error:  # whatever the network or the file system raises
        raise UsageError(f"{_not_downloaded(name, error)}, or begin from a file: init=FILE") from error


def _not_downloaded(name: str, error: Exception) -> str:
    reason = textwrap.shorten(str(error) or type(error).__name__, 160, placeholder=" …")
    return f"the weights of {name} cannot be downloaded ({reason}): connect to huggingface.co"


def _check_name(name: str) -> None:
    if not timm.is_model(name):
        near = timm.list_models(f"*{name}*")[:5] or difflib.get_close_matches(name, timm.list_models(), 5, 0.4)
        raise UsageError(
            f"model.name={name} is not a model of timm {timm.__version__}: "
            + (f"did you mean {', '.join(near)}?" if near else "timm.list_models() shows them all")
        )


def _pretrained_cfg(name: str) -> PretrainedCfg:
    _check_name(name)
    try:
        found = get_pretrained_cfg(name)
    except RuntimeError as error:
        tags = ", ".join(timm.list_pretrained(f"{name.partition('.')[0]}.*"))
        raise UsageError(f"timm has no weights {name}: expected one of {tags}") from error
    if found is None:
        raise UsageError(
            f"timm has no published weights of {name}: timm.list_pretrained() lists the models with weights"
        )
    return found


def _create(name: str, options: dict[str, Any], num_classes: int, offered: dict[str, Any]) -> nn.Module:
    """The model with `options` and those of the `offered` arguments that it takes, found by trying."""
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
