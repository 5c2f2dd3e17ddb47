"""The baselines as their papers write them, one head of one image at a time: the twins of the fast paths."""

import math

import torch
from torch import Tensor

from tests.attention.naive import _each_image, heads

LEAST = 1e-12
TWINS = {}


def _by_weights(weights):
    """A twin from `weights(layer, Q, K)`, the (N, N) matrix of one head."""

    def twin(layer, x: Tensor) -> Tensor:
        return _each_image(layer, x, [lambda Q, K, V: weights(layer, Q, K) @ V] * layer.num_heads)

    TWINS[weights.__name__] = twin
    return twin


def _normalised(weights: Tensor) -> Tensor:
    return weights / weights.sum(dim=1, keepdim=True).clamp_min(LEAST)


@_by_weights
def relu(layer, Q, K):
    return torch.relu(Q @ K.T / layer.head_dim**0.5) / len(K)


@_by_weights
def elu_linear(layer, Q, K):  # noqa: ARG001
    return _normalised(_phi(Q) @ _phi(K).T)


def _phi(x: Tensor) -> Tensor:
    """elu + 1."""
    return torch.where(x > 0, x + 1, x.clamp_max(0).exp())


@_by_weights
def relu_linear(layer, Q, K):  # noqa: ARG001
    return _normalised(torch.relu(Q) @ torch.relu(K).T)


@_by_weights
def focused_linear(layer, Q, K):
    def phi(x):
        x = torch.relu(x)
        rows = [row.norm() / (row**layer.power).norm() * row**layer.power if row.any() else row for row in x]
        return torch.stack(rows)

    return _normalised(phi(Q) @ phi(K).T)


@_by_weights
def cosformer(layer, Q, K):  # noqa: ARG001
    N = len(Q)
    nearness = [[math.cos(math.pi / 2 * (i - j) / N) for j in range(N)] for i in range(N)]
    return _normalised(torch.relu(Q) @ torch.relu(K).T * Q.new_tensor(nearness))


@_by_weights
def performer(layer, Q, K):
    def phi(x):
        x = x / layer.head_dim**0.25
        return torch.exp(x @ layer.projection.T - (x * x).sum(dim=1, keepdim=True) / 2) / len(layer.projection) ** 0.5

    return _normalised(phi(Q) @ phi(K).T)


@_by_weights
def efficient(layer, Q, K):  # noqa: ARG001
    return torch.softmax(Q, dim=1) @ torch.softmax(K, dim=0).T


@_by_weights
def linformer(layer, Q, K):
    E, F = layer.key_value_projection
    E, F = _resized(E, len(K)), _resized(F, len(K))
    return torch.softmax(Q @ (E @ K).T / layer.head_dim**0.5, dim=1) @ F


def _resized(E: Tensor, N: int) -> Tensor:
    """(rank, tokens) → (rank, N), linear along the tokens and of equal sums, by torch."""
    tokens = E.shape[1]
    return torch.nn.functional.interpolate(E[None], size=N, mode="linear", align_corners=False)[0] * tokens / N


def _segments(N: int, m: int) -> list[list[int]]:
    return [[i for i in range(N) if i * m // N == s] for s in range(m)]


@_by_weights
def agent(layer, Q, K):
    N = len(K)
    A = torch.stack([Q[tokens].mean(dim=0) for tokens in _segments(N, min(layer.agents, N))])
    if layer.grid:
        A = torch.stack([Q[tokens].mean(dim=0) for tokens in _windows(N, layer.agents)])
    scale = layer.head_dim**-0.5
    return torch.softmax(scale * Q @ A.T, dim=1) @ torch.softmax(scale * A @ K.T, dim=1)


def _windows(N: int, agents: int) -> list[list[int]]:
    """The tokens of each window of the grid of patches, which are the last ones."""
    side = math.isqrt(N)
    windows = min(side, math.isqrt(agents))
    spans = [range(w * side // windows, math.ceil((w + 1) * side / windows)) for w in range(windows)]
    return [[N - side**2 + i * side + j for i in rows for j in columns] for rows in spans for columns in spans]


@_by_weights
def nystrom(layer, Q, K):
    N = len(K)
    m = min(layer.landmarks, N)
    segments = _segments(N, m)
    Q, K = Q / layer.head_dim**0.25, K / layer.head_dim**0.25
    Qm = torch.stack([Q[segment].mean(dim=0) for segment in segments])
    Km = torch.stack([K[segment].mean(dim=0) for segment in segments])
    A = torch.softmax(Qm @ Km.T, dim=1)
    I = torch.eye(m, dtype=A.dtype)  # noqa: E741
    Z = A.T / (torch.linalg.matrix_norm(A, 1) * torch.linalg.matrix_norm(A, torch.inf))
    for _ in range(layer.iterations):
        Z = 0.25 * Z @ (13 * I - A @ Z @ (15 * I - A @ Z @ (7 * I - A @ Z)))
    return torch.softmax(Q @ Km.T, dim=1) @ Z @ torch.softmax(Qm @ K.T, dim=1)


@_by_weights
def inline(layer, Q, K):
    S, N = Q @ K.T / layer.head_dim**0.5, len(K)
    return (S - S.mean(dim=1, keepdim=True)) / N + 1 / N


def hydra(layer, x: Tensor) -> Tensor:
    images = []
    for image in x:
        bias = layer.qkv.bias if layer.qkv.bias is not None else 0
        Q, K, V = (image @ layer.qkv.weight.T + bias).chunk(3, dim=1)
        Q = torch.stack([q / q.norm().clamp_min(1e-6) for q in Q])
        K = torch.stack([k / k.norm().clamp_min(1e-6) for k in K])
        O = Q * (K * V).sum(dim=0)  # noqa: E741
        images.append(O @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


def xca(layer, x: Tensor) -> Tensor:
    images = []
    for image in x:
        outputs = []
        for Q, K, V, tau in zip(*heads(layer, image), layer.temperature, strict=True):
            Q, K = (t / t.norm(dim=0).clamp_min(1e-6) for t in (Q, K))
            outputs.append(V @ torch.softmax(tau * Q.T @ K, dim=1).T)
        images.append(torch.cat(outputs, dim=1) @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


def _gated(head):
    """A twin from `head(layer, Q, K, V, h)`, of one head, times the gate."""

    def twin(layer, x: Tensor) -> Tensor:
        images = []
        for image in x:
            outputs = [head(layer, Q, K, V, h) for h, (Q, K, V) in enumerate(zip(*heads(layer, image), strict=True))]
            gate = image @ layer.gate_weight.T + layer.gate_bias
            images.append((gate * torch.cat(outputs, dim=1)) @ layer.proj.weight.T + layer.proj.bias)
        return torch.stack(images)

    TWINS[head.__name__] = twin
    return twin


@_gated
def polaformer(layer, Q, K, V, h):
    p = 1 + layer.power * torch.sigmoid(layer.exponent[h])
    Q_plus, Q_minus, K_plus, K_minus = (torch.relu(t) ** p for t in (Q, -Q, K, -K))
    same = Q_plus @ K_plus.T + Q_minus @ K_minus.T
    opposite = Q_plus @ K_minus.T + Q_minus @ K_plus.T
    half = math.ceil(layer.head_dim / 2)
    return torch.cat([_normalised(same) @ V[:, :half], _normalised(opposite) @ V[:, half:]], dim=1)


@_gated
def rala(layer, Q, K, V, h):  # noqa: ARG001
    Q, K = _phi(Q), _phi(K)
    alpha = len(K) * torch.softmax(K @ Q.mean(dim=0) / layer.head_dim**0.5, dim=0)
    return _normalised(Q @ (alpha[:, None] * K).T) @ V


def taylorshift(layer, x: Tensor) -> Tensor:
    """The direct form."""
    N, d = x.shape[1], layer.head_dim
    images = []
    for image in x:
        outputs = []
        for Q, K, V, tau in zip(*heads(layer, image), layer.temperature, strict=True):
            Q, K = (torch.stack([row / row.norm().clamp_min(LEAST) for row in t]) for t in (Q, K))
            S = tau * Q @ K.T
            outputs.append((N / d) ** 0.5 * _normalised(1 + S + S**2 / 2) @ V)
        images.append(torch.cat(outputs, dim=1) @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


def differential(layer, x: Tensor) -> Tensor:
    half = layer.head_dim // 2
    q1, k1, q2, k2 = layer.lambdas.view(4, half)
    factor = torch.exp(q1 @ k1) - torch.exp(q2 @ k2) + layer.lambda_init
    images = []
    for image in x:
        outputs = []
        for Q, K, V in zip(*heads(layer, image), strict=True):
            first = torch.softmax(Q[:, :half] @ K[:, :half].T / half**0.5, dim=1)
            second = torch.softmax(Q[:, half:] @ K[:, half:].T / half**0.5, dim=1)
            O = (first - factor * second) @ V  # noqa: E741
            norm = torch.sqrt((O**2).mean(dim=1, keepdim=True) + 1e-5)
            outputs.append((1 - layer.lambda_init) * O / norm * layer.norm_weight)
        images.append(torch.cat(outputs, dim=1) @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


def mamba2(layer, x: Tensor) -> Tensor:
    """The recurrence, token by token, there and back."""
    H, rate = layer.num_heads, layer.log_rate.exp()
    images = []
    for image in x:
        delta = torch.log1p(torch.exp(image @ layer.delta_weight.T + layer.delta_bias))
        there = range(len(image))
        outputs = []
        for h, (Q, K, V) in enumerate(zip(*heads(layer, image), strict=True)):
            Q, K, V = _silu(Q), _silu(K), _silu(V)
            O = list(layer.skip[h] * V)  # noqa: E741
            for at, order in ((h, there), (H + h, reversed(there))):
                state = torch.zeros(layer.head_dim, layer.head_dim, dtype=x.dtype)
                for i in order:
                    state = torch.exp(-rate[at] * delta[i, at]) * state + delta[i, at] * torch.outer(K[i], V[i])
                    O[i] = O[i] + Q[i] @ state
            outputs.append(torch.stack(O))
        gate = _silu(image @ layer.gate_weight.T + layer.gate_bias)
        O = gate * torch.cat(outputs, dim=1)  # noqa: E741
        O = O / torch.sqrt((O**2).mean(dim=1, keepdim=True) + 1e-5) * layer.norm_weight  # noqa: E741
        images.append(O @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


def mila(layer, x: Tensor) -> Tensor:
    images = []
    Wq, Wk, Wv = layer.qkv.weight.chunk(3)
    bq, bk, bv = (0, 0, 0) if layer.qkv.bias is None else layer.qkv.bias.chunk(3)
    for image in x:
        V = _silu(image @ Wv.T + bv)
        Q, K = _phi(V @ Wq.T + bq), _phi(V @ Wk.T + bk)
        each = zip(*(t.chunk(layer.num_heads, dim=1) for t in (Q, K, V)), strict=True)
        gate = _silu(image @ layer.gate_weight.T + layer.gate_bias)
        O = gate * torch.cat([_normalised(Q @ K.T) @ V for Q, K, V in each], dim=1)  # noqa: E741
        images.append(O @ layer.proj.weight.T + layer.proj.bias)
    return torch.stack(images)


def _silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def none(layer, x: Tensor) -> Tensor:
    D = layer.dim
    values, mixed = layer.qkv.weight[2 * D :], layer.proj.weight
    bias = layer.qkv.bias[2 * D :] if layer.qkv.bias is not None else 0
    return (x @ values.T + bias) @ mixed.T + layer.proj.bias


TWINS |= {"hydra": hydra, "xca": xca, "taylorshift": taylorshift, "differential": differential}
TWINS |= {"mila": mila, "mamba2": mamba2, "none": none}
