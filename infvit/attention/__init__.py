"""Attention operators with one signature: `(dim, num_heads=8, qkv_bias=True, attn_drop=0., proj_drop=0., ...)`.

`ATTENTIONS` has them by name; `print(overview())` prints paper, time, memory and state of each, which are members of
its class. A new operator is a module in this package with a subclass of `Attention` that has a `name`: it is imported
here, and `infvit.attention.ItsClass` finds it. The imports by name below exist for type checkers.
"""

import importlib
import pkgutil

from infvit.attention.cosformer import CosFormerAttention
from infvit.attention.efficient import EfficientAttention
from infvit.attention.elu_linear import ELULinearAttention
from infvit.attention.focused_linear import FocusedLinearAttention
from infvit.attention.hydra import HydraAttention
from infvit.attention.layer import ATTENTIONS, Attention, DiscountedAttention
from infvit.attention.linear import LinearInfSA
from infvit.attention.linformer import LinformerAttention
from infvit.attention.none import NoAttention
from infvit.attention.nystrom import NystromAttention
from infvit.attention.performer import PerformerAttention
from infvit.attention.pure import PureInfSA
from infvit.attention.relu import ReLUAttention
from infvit.attention.relu_linear import ReLULinearAttention
from infvit.attention.softmax import SoftmaxAttention, UnfusedSoftmaxAttention
from infvit.attention.xca import CrossCovarianceAttention

__all__ = [
    "ATTENTIONS",
    "Attention",
    "CosFormerAttention",
    "CrossCovarianceAttention",
    "DiscountedAttention",
    "ELULinearAttention",
    "EfficientAttention",
    "FocusedLinearAttention",
    "HydraAttention",
    "LinearInfSA",
    "LinformerAttention",
    "NoAttention",
    "NystromAttention",
    "PerformerAttention",
    "PureInfSA",
    "ReLUAttention",
    "ReLULinearAttention",
    "SoftmaxAttention",
    "UnfusedSoftmaxAttention",
    "overview",
]

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update({_operator.__name__: _operator for _operator in ATTENTIONS.values()})

LEGEND = """\
N tokens of width D in H heads, each d = D / H wide. Time: added to the
projections of Q, K, V and the output, O(N D²) in all (linear_infsa computes Q
alone, none V and the output). Memory: held beyond these. State: what a token
needs from all others. m: random features (d ln d by default) or landmarks (64).
k: rows that the tokens are projected to (a quarter of them in training)."""


def overview() -> str:
    """A table of all operators, at most 80 columns wide: name, paper, time, memory and state per head."""
    rows = [("name", "paper", "time", "memory", "state per head")]
    rows += [(name, a.paper or "-", a.time, a.memory, a.state) for name, a in sorted(ATTENTIONS.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", LEGEND])
