"""The layers in benchmarks: fast paths, their formulas as written, and softmax."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

from infvit.attention import Attention, LinearInfSA, PureInfSA, SoftmaxAttention, UnfusedSoftmaxAttention
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
    "linear_infsa": LinearInfSA,
    "linear_infsa_chunks": partial(LinearInfSA, chunk=1024),
    "linear_infsa_as_written": lambda dim, heads: AsWritten(LinearInfSA(dim, heads), naive.linear),
    "softmax": SoftmaxAttention,
    "softmax_unfused": UnfusedSoftmaxAttention,
}

HOLDS_MATRICES = ("infsa_as_written", "softmax_unfused")
"""Layers that hold N × N matrices in memory."""
