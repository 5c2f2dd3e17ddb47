"""Attention operators with one signature: `(dim, num_heads=8, qkv_bias=True, attn_drop=0., proj_drop=0., ...)`.

`ATTENTIONS` has them by name; `print(overview())` prints paper, time, memory and state of each, which are members of
its class. A new operator is a module in this package with a subclass of `Attention` that has a `name`: it is imported
here, and `infvit.attention.ItsClass` finds it. The imports by name below exist for type checkers.
"""

import importlib
import pkgutil

from infvit.attention.agent import AgentAttention as AgentAttention
from infvit.attention.cosformer import CosFormerAttention as CosFormerAttention
from infvit.attention.differential import DifferentialAttention as DifferentialAttention
from infvit.attention.efficient import EfficientAttention as EfficientAttention
from infvit.attention.elu_linear import ELULinearAttention as ELULinearAttention
from infvit.attention.focused_linear import FocusedLinearAttention as FocusedLinearAttention
from infvit.attention.hydra import HydraAttention as HydraAttention
from infvit.attention.inline import InLineAttention as InLineAttention
from infvit.attention.kernel_infsa import KernelInfSA as KernelInfSA
from infvit.attention.layer import Attention as Attention
from infvit.attention.layer import DiscountedAttention as DiscountedAttention
from infvit.attention.linear import LinearInfSA as LinearInfSA
from infvit.attention.linformer import LinformerAttention as LinformerAttention
from infvit.attention.mamba2 import BidirectionalMamba2 as BidirectionalMamba2
from infvit.attention.mila import MILAttention as MILAttention
from infvit.attention.none import NoAttention as NoAttention
from infvit.attention.nystrom import NystromAttention as NystromAttention
from infvit.attention.performer import PerformerAttention as PerformerAttention
from infvit.attention.polaformer import PolaFormerAttention as PolaFormerAttention
from infvit.attention.pure import PureInfSA as PureInfSA
from infvit.attention.rala import RALAttention as RALAttention
from infvit.attention.registry import ATTENTIONS as ATTENTIONS
from infvit.attention.registry import find as find
from infvit.attention.registry import register as register
from infvit.attention.relu import ReLUAttention as ReLUAttention
from infvit.attention.relu_linear import ReLULinearAttention as ReLULinearAttention
from infvit.attention.softmax import SoftmaxAttention as SoftmaxAttention
from infvit.attention.softmax import UnfusedSoftmaxAttention as UnfusedSoftmaxAttention
from infvit.attention.spectral import SpectralInfSA as SpectralInfSA
from infvit.attention.taylorshift import TaylorShiftAttention as TaylorShiftAttention
from infvit.attention.xca import CrossCovarianceAttention as CrossCovarianceAttention

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")
globals().update({_operator.__name__: _operator for _operator in ATTENTIONS.values()})

LEGEND = """\
N tokens of width D in H heads, each d = D / H wide. Time: added to the
projections of Q, K, V and the output, O(N D²) in all (linear_infsa computes Q
alone, none V and the output, gated ones a gate too). Memory: held beyond these.
State: what a token needs from all others. m: random features (d ln d by
default), landmarks (64) or agents (49). k: rows that the tokens are projected
to (a quarter of them in training)."""


def overview() -> str:
    """A table of all operators, at most 80 columns wide: name, paper, time, memory and state per head."""
    rows = [["name", "paper", "time", "memory", "state/head"]]
    facts = ("paper", "time", "memory", "state")
    rows += [[name, *(getattr(a, fact, "") or "-" for fact in facts)] for name, a in sorted(ATTENTIONS.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([*lines, "", LEGEND])
