"""Linear attention with elu + 1 (arXiv:2006.16236)."""

from torch import Tensor
from torch.nn import functional as F

from infvit.attention.kernel import KernelAttention
from infvit.attention.layer import Masks


class ELULinearAttention(KernelAttention):
    """phi(x) = elu(x) + 1, positive everywhere."""

    name, paper = "elu_linear", "arXiv:2006.16236"

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        return F.elu(Q) + 1, F.elu(K) + 1
