"""Weights to begin with (`init=`): read from a run, the hub, timm or a file, and fitted into a model.

    print(begin_from(net, "runs/vit_seed0", classes))

What `init` may be: `infvit.run.start_weights`.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import timm.models
from safetensors.torch import load_file
from torch import Tensor, nn

from infvit.errors import UsageError
from infvit.run.checkpoint import read_checkpoint
from infvit.run.start_weights import TIMM, weights_file
from infvit.timm_models import pretrained_weights
from infvit.weights.fit import FitReport, fit


class Weights(NamedTuple):
    """Tensors by name, and the names of the classes that they are for, None if not known."""

    tensors: Mapping[str, Tensor]
    classes: list[str] | None


def begin_from(net: nn.Module, init: str, classes: Sequence[str]) -> FitReport:
    """Loads the weights that `init` names into `net`, as far as they fit, and reports every tensor.

    Args:
        init: see `infvit.run.start_weights.weights_file`.
        classes: of the data; a head for other ones is left out, and one for as many whose names are not known is taken.

    Raises:
        UsageError: the weights cannot be read, or are of another architecture.
    """
    weights = read(init)
    try:
        fitted, report = fit(weights.tensors, net, weights.classes is None or weights.classes == list(classes))
    except UsageError as error:
        raise UsageError(f"init={init}: {error}") from error
    net.load_state_dict(fitted, strict=False)
    return report


def read(init: str) -> Weights:
    """The weights that `init` names; only tensors and plain values are unpickled."""
    path = weights_file(init)
    if path is None:
        return Weights(*pretrained_weights(init.removeprefix(TIMM)))
    if path.suffix == ".ckpt":
        content = read_checkpoint(path)
        # Of Lightning's modules the network is an attribute; here its name is `net`.
        tensors = {name.removeprefix("net."): tensor for name, tensor in content["state_dict"].items()}
        return Weights(tensors, content.get("ImageDataModule", {}).get("classes"))
    return Weights(_read_file(path), None)


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        return timm.models.load_state_dict(str(path))  # of timm, DeiT and others: under "model", "state_dict"
    except Exception as error:  # torch raises what zip, pickle or the file system raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise UsageError(
            f"init={path} cannot be read as weights ({reason}): give .safetensors, .pth or .ckpt"
        ) from error
