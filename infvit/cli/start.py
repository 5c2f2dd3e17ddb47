"""The network of a run, and what it begins from: `init=`, weights trained before, and `convert=`, another attention."""

from collections.abc import Callable, Sequence

from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from infvit.convert import convert
from infvit.errors import UsageError
from infvit.run.files import print_line
from infvit.run.ranks import is_global_zero
from infvit.run.start_weights import row_label, weights_file
from infvit.weights import begin_from


def make_network(cfg: DictConfig, classes: Sequence[str], trained: bool = False) -> nn.Module:
    """The network of a run before its first step: with the weights of `init`, then the attention of `convert`.

    Prints what became of each tensor and each attention. With `grad_checkpointing` its blocks are computed again in the
    backward pass instead of storing their activations.

    Args:
        trained: whether the weights of the run itself will be loaded; those of `init` are not needed then.

    Raises:
        UsageError: the weights cannot be read or are of another architecture, or nothing can be converted.
    """
    net: nn.Module = instantiate(cfg.model.net, num_classes=len(classes), _convert_="all")
    quiet = trained or not is_global_zero()
    if (init := cfg.get("init")) and not trained:
        tensors = begin_from(net, init, classes)
        if not quiet:
            print_line(f"init {row_label(init)}, {weights_file(init) or 'of timm'}\n{tensors}")
    if given := cfg.get("convert"):
        blocks = None if given.blocks is None else [f"blocks.{b}" if isinstance(b, int) else b for b in given.blocks]
        report = convert(net, instantiate(given.attention), blocks)
        if not report.converted:
            raise UsageError(f"convert: {' '.join(str(report).split())}: expected a model with softmax attention")
        if not quiet:
            print_line(str(report))
    if cfg.get("grad_checkpointing") and not trained:
        enable: Callable[[], None] | None = getattr(net, "set_grad_checkpointing", None)
        if enable is None:
            raise UsageError(f"grad_checkpointing=true: {type(net).__name__} has no such blocks: leave it out")
        enable()
    return net
