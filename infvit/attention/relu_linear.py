"""ReLU linear attention, as in EfficientViT (arXiv:2205.14756)."""

from torch import Tensor

from infvit.attention.kernel import KernelAttention
from infvit.attention.layer import Masks


class ReLULinearAttention(KernelAttention):
    """phi(x) = relu(x); a query without a positive product with any key gets 0.

    EfficientViT's global attention alone, without the convolutions over neighbours at several scales, which belong to
    its convolutional backbone.
    """

    name, paper = "relu_linear", "arXiv:2205.14756"

    def features(self, Q: Tensor, K: Tensor, masks: Masks) -> tuple[Tensor, Tensor]:
        return Q.relu(), K.relu()
