"""The formulas of arXiv:2603.00175 as written, one head of one image at a time: the twins of the fast paths."""

import math

import torch
from torch import Tensor

from infvit.attention import Attention, DiscountedAttention, KernelInfSA, PureInfSA, SpectralInfSA

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


def pure(layer: PureInfSA, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
    """Σ_{t=1..hops} (gamma Ahat)ᵗ V with powers of the matrix, or its limit with the inverse."""
    B, N, _ = x.shape
    seen = torch.ones(B, layer.num_heads, N, N, dtype=torch.bool)
    if attn_mask is not None:
        seen &= ~(attn_mask[:, None] if attn_mask.ndim == 3 else attn_mask)

    images = []
    for b, image in enumerate(x):
        Q, K, V = heads(layer, image)
        outputs = []
        for h, gamma in enumerate(torch.sigmoid(layer.gamma_logit)):
            A = torch.relu(Q[h] @ K[h].T / layer.head_dim) * seen[b, h]
            M = gamma * A / (torch.linalg.matrix_norm(A, "fro") + EPS)
            if layer.hops == math.inf:
                outputs.append((torch.linalg.inv(torch.eye(N, dtype=x.dtype) - M) - torch.eye(N, dtype=x.dtype)) @ V[h])
            else:
                outputs.append(sum(torch.linalg.matrix_power(M, t) @ V[h] for t in range(1, int(layer.hops) + 1)))
        images.append(torch.cat(outputs, dim=-1) @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


def spectral(layer: SpectralInfSA, x: Tensor) -> Tensor:
    """As `pure`, over a graph of another norm and with a temperature."""

    def head(gamma: Tensor, tau: Tensor):
        def apply(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
            A, eye = torch.relu(Q @ K.T / Q.shape[-1]) ** (1 / tau), torch.eye(len(Q), dtype=Q.dtype)
            M = gamma * A / spectral_norm(A)
            if layer.hops == math.inf:
                return (torch.linalg.inv(eye - M) - eye) @ V
            return sum(torch.linalg.matrix_power(M, t) @ V for t in range(1, int(layer.hops) + 1))

        return apply

    parameters = zip(torch.sigmoid(layer.gamma_logit), torch.sigmoid(layer.temperature_logit), strict=True)
    return _each_image(layer, x, [head(*pair) for pair in parameters])


def spectral_norm(A: Tensor) -> Tensor:
    """The lesser of ‖A‖_F and of the bound of Collatz and Wielandt after power iteration; 1 for A = 0."""
    if not A.any():
        return torch.ones((), dtype=A.dtype)
    unit = A.max()
    S, v = (A / unit).T @ (A / unit), torch.ones(len(A), dtype=A.dtype)
    for step in range(10):
        if step % 5 == 0:
            v = v / v.max()
            largest = (S @ v).max()
        v = S @ v + largest / 2 * v
    return unit * torch.sqrt(torch.minimum((S @ v / v).max(), S.trace()))


def kernel_affinities(layer: KernelInfSA, Q: Tensor, K: Tensor) -> Tensor:
    """Ahat of one head: (N, d), (N, d) → (N, N)."""
    fq, fk = PHI[layer.features](Q), PHI[layer.features](K)
    A = fq @ fk.T / Q.shape[-1]
    norm = torch.linalg.matrix_norm(A, "fro")
    if layer.norm == "spectral":
        M = fk.T @ fq / Q.shape[-1]  # has the eigenvalues of A
        unit = torch.where(M.max() == 0, 1, M.max().detach())  # 1e60⁸ leaves the range of float64
        radius = unit * torch.linalg.matrix_norm(torch.linalg.matrix_power(M / unit, 8), "fro") ** (1 / 8)
        norm = torch.maximum(radius, norm / 100)
    return A / (norm + EPS)


def _cubed(x: Tensor) -> Tensor:
    x = torch.relu(x)
    cube = x**3
    norms = torch.linalg.vector_norm(x, dim=-1, keepdim=True), torch.linalg.vector_norm(cube, dim=-1, keepdim=True)
    return cube * norms[0] / torch.where(norms[1] == 0, 1, norms[1])


PHI = {"relu": torch.relu, "cubed": _cubed, "softplus": torch.nn.functional.softplus}


def kernel(layer: KernelInfSA, x: Tensor) -> Tensor:
    """As `pure`, over Ahat of features: N × N matrices, their powers and inverse."""

    def head(gamma: Tensor):
        def apply(Q: Tensor, K: Tensor, V: Tensor) -> Tensor:
            M, eye = gamma * kernel_affinities(layer, Q, K), torch.eye(len(Q), dtype=Q.dtype)
            if layer.hops == math.inf:
                return (torch.linalg.inv(eye - M) - eye) @ V
            return sum(torch.linalg.matrix_power(M, t) @ V for t in range(1, int(layer.hops) + 1))

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


TWINS = {
    "softmax": softmax,
    "softmax_unfused": softmax,
    "infsa": pure,
    "linear_infsa": linear,
    "kernel_infsa": kernel,
    "spectral_infsa": spectral,
}
