"""The formulas of arXiv:2603.00175 as written, one head of one image at a time: the twins of the fast paths."""

import torch
from torch import Tensor

from infvit.attention import Attention, DiscountedAttention

EPS = 1e-6


def heads(layer: Attention, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Q, K, V of one image's tokens (N, D), each (H, N, d)."""
    N, D = x.shape
    bias = layer.qkv.bias if layer.qkv.bias is not None else x.new_zeros(3 * D)
    packed = x @ layer.qkv.weight.T + bias
    Q, K, V = (packed[:, i * D : (i + 1) * D].view(N, layer.num_heads, -1).transpose(0, 1) for i in range(3))
    return Q, K, V


def softmax(layer: Attention, x: Tensor) -> Tensor:
    def head(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
        return torch.softmax(Q @ K.T / layer.head_dim**0.5, dim=-1) @ V

    return _each_image(layer, x, [head] * layer.num_heads)


def pure(layer: DiscountedAttention, x: Tensor) -> Tensor:
    def head(gamma: Tensor):
        def apply(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
            A = torch.relu(Q @ K.T / layer.head_dim)
            Ahat = A / (torch.linalg.matrix_norm(A, "fro") + EPS)
            return gamma * Ahat @ V

        return apply

    return _each_image(layer, x, [head(g) for g in torch.sigmoid(layer.gamma_logit)])


def linear(layer: DiscountedAttention, x: Tensor) -> Tensor:
    def head(gamma: Tensor):
        def apply(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
            a = linear_weights(Q, K)
            return gamma * (a @ V).expand(len(V), -1)

        return apply

    return _each_image(layer, x, [head(g) for g in torch.sigmoid(layer.gamma_logit)])


def linear_weights(Q: Tensor, K: Tensor) -> Tensor:
    """a of one head: (N, d), (N, d) → (N,)."""
    norms = torch.linalg.vector_norm(Q, dim=-1)
    alpha = norms / (norms.sum() + EPS)
    qbar = alpha @ Q
    scores = torch.relu(K @ qbar / Q.shape[-1])
    return scores / (scores.sum() + EPS)


def _each_image(layer: Attention, x: Tensor, operators: list) -> Tensor:
    images = []
    for image in x:
        Q, K, V = heads(layer, image)
        O = torch.cat([operator(Q[h], K[h], V[h]) for h, operator in enumerate(operators)], dim=-1)  # noqa: E741
        images.append(O @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


TWINS = {"softmax": softmax, "softmax_unfused": softmax, "infsa": pure, "linear_infsa": linear}
