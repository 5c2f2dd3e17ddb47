"""The layers in benchmarks: fast paths, their formulas as written, and softmax; and the memory that each holds."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from infvit.attention import Attention, KernelInfSA, LinearInfSA, PureInfSA, SoftmaxAttention, UnfusedSoftmaxAttention
from infvit.measure.subprocess_case import peak_memory
from tests.attention import naive


class AsWritten(nn.Module):
    """A layer's naive twin, run on its weights."""

    def __init__(self, layer: Attention, twin: Callable[..., Tensor]) -> None:
        super().__init__()
        self.layer, self.twin = layer, twin

    def forward(self, x: Tensor) -> Tensor:
        return self.twin(self.layer, x)


CONTESTANTS: dict[str, Callable[[int, int], nn.Module]] = {
    "infsa": PureInfSA,
    "infsa_as_written": lambda dim, heads: AsWritten(PureInfSA(dim, heads), naive.pure),
    "kernel_infsa": KernelInfSA,
    "linear_infsa": LinearInfSA,
    "linear_infsa_chunks": partial(LinearInfSA, chunk=1024),
    "linear_infsa_as_written": lambda dim, heads: AsWritten(LinearInfSA(dim, heads), naive.linear),
    "softmax": SoftmaxAttention,
    "softmax_unfused": UnfusedSoftmaxAttention,
}

HOLDS_MATRICES = ("infsa_as_written", "softmax_unfused")
"""Layers that hold N × N matrices in memory."""


def megabytes_held(name: str, tokens: int, dim: int, heads: int, backward: bool) -> float:
    """The most that this process holds during a pass beyond weights, input and the output's gradient."""
    layer = CONTESTANTS[name](dim, heads)
    # Libraries load code at the first use of each operation: a small pass first, which is not counted.
    layer(torch.randn(1, 600, dim, requires_grad=True)).sum().backward()
    Path("/proc/self/clear_refs").write_text("5")  # the largest begins anew
    x = torch.randn(1, tokens, dim, requires_grad=True)
    gradient, before = torch.randn_like(x), peak_memory()
    with torch.set_grad_enabled(backward):
        output = layer(x)
    if backward:
        output.backward(gradient)
    return (peak_memory() - before) / 1e6
