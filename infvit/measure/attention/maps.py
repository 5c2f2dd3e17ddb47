"""Attention maps: the weights of a model's blocks on each patch, by nine methods.

A map starts from the absolute weights |W| of the heads of a block, a matrix (N, N) each or one vector a (Linear-InfSA);
some operators have negative weights. It is read out by p, a distribution over tokens: all on the class token, or
uniform over the patches if the model pools these. Source: arXiv:2603.00175 unless another is named.

| method               | of a matrix W                                  | of a vector a, W = 1 aᵀ |
|----------------------|------------------------------------------------|-------------------------|
| `attention`          | pᵀ W                                           | a                       |
| `rollout`            | pᵀ R_L ⋯ R_1, R = I + W with rows summing to 1 |                         |
| `katz_in`            | (F − I)ᵀ 1 with F = (I − M)⁻¹                  | N g a                   |
| `katz_out`           | (F − I) 1                                      | g Σa, flat              |
| `visits`             | pᵀ F                                           | p + g a                 |
| `eigenvector`        | v with vᵀ W = λ vᵀ, summing to 1               | a                       |
| `weights`            |                                                | a                       |
| `gradient_attention` | pᵀ (W ⊙ ∂y/∂W)⁺                                | (a ⊙ ∂y/∂a)⁺            |
| `random`             | uniform numbers                                | uniform numbers         |

- For InfSA M = gamma W with the discount of each head, as the layer applies it; g = gamma / (1 − gamma Σa).
- Of weights that are given by their factors (KernelInfSA) all but `attention`, `rollout` and `gradient_attention` are
  computed without the matrix, in O(N d² + d³).
- Other operators have no discount, and F does not exist without one where rows sum to 1. They are read as M = 0.95 W
  with rows summing to 1: InfSA's gamma starts at 0.95, and a walk then takes 20 steps on average before absorption.
  All walks have the same length, so their `katz_out` is flat except for rows of zeros.
- A block's map is the mean over its heads, weighted by their size; `rollout` (arXiv:2005.00928) takes W as their mean.
- `gradient_attention` explains y, the logit of the predicted class. Over all blocks it is propagated
  (arXiv:2103.15679): R ← R + (mean of heads (W ⊙ ∂y/∂W)⁺) R from R = I, read as pᵀ (R − I).
- `random` is the lower bound: it depends only on the image, not on batch or block.
"""

import warnings
import zlib
from collections.abc import Iterator
from itertools import islice

import torch
from torch import Tensor, nn

from infvit.attention.layer import precision
from infvit.attention.tokens import precise
from infvit.errors import UsageError
from infvit.graph import LowRankGraph, absorbing_chain, eigenvector_centrality, katz
from infvit.measure.attention.blocks import Backbone, Operator, backbone

METHODS = {
    "attention": "The weights of the patches for the class token or, without one, for the mean of all patches.",
    "rollout": "The same through this and all earlier blocks, half of each step the identity (Abnar and Zuidema).",
    "katz_in": "Katz centrality: the discounted paths of the walk on tokens that end at a token.",
    "katz_out": "Katz centrality: the discounted paths that start at a token.",
    "visits": "Expected visits of a walk from the class token, or from a patch at random, before it is absorbed.",
    "eigenvector": "The left Perron vector of the weights: where a walk that is never absorbed is in the long run.",
    "weights": "Linear-InfSA's one weight per token, the same for all tokens.",
    "gradient_attention": "The weights times the positive part of the predicted class's gradient with respect to them.",
    "random": "Uniform numbers: the lower bound for a map.",
}
"""Each method with its explanation for readers of the maps."""

DISCOUNT = 0.95
"""gamma for operators without a discount of their own."""

ROUNDING = 1e-5
"""Maps whose values differ by less, relative to the largest, count as flat: their ranking would be rounding errors."""

HAS = {
    "matrix": "an N × N matrix of weights",
    "vector": "one weight a token and no N × N matrix",
    "nothing": "no weights of tokens known here",
}


def offered(model: nn.Module) -> tuple[str, ...]:
    """The methods that a model's attentions support, in the order of `METHODS`.

    Raises:
        UsageError: if the model is neither infvit's nor timm's VisionTransformer.
    """
    net = backbone(model)
    return tuple(method for method in METHODS if not _lacking(net, method))


@torch.no_grad()
def token_map(model: nn.Module, images: Tensor, method: str, block: int | None = -1) -> Tensor:
    """A map of each image over its grid of patches: (B, C, height, width) → (B, h, w), summing to 1.

    A map is zero if its heads are off (for `gradient_attention`: if they speak against the class). NaN in an image
    stays in its map. Memory is a few times the weights of one block, (B, H, N, N), plus a training step's for
    `gradient_attention`.

    Args:
        model: in evaluation mode, unless dropout and stochastic depth are to be included.
        images: as `model` takes them.
        method: one of `offered(model)`.
        block: its index, from the end if negative; None for all: the mean of their maps, or propagation through them
            for `rollout` (otherwise from the first block to `block`) and, for matrices, `gradient_attention`.

    Raises:
        UsageError: for an unknown model, method or block.
    """
    net = _checked(model, method)
    depth = len(net.operators)
    if block is not None and not -depth <= block < depth:
        raise UsageError(
            f"block={block} is out of range: the model has {depth} blocks, expected {-depth} to {depth - 1}"
        )
    grid = net.grid(*images.shape[-2:])
    if method == "random":
        return _random(images, grid)
    if block is not None or method == "rollout":
        last = depth - 1 if block is None else block % depth
        shares = _shares(net, next(islice(_layers(net, images, method), last, None)))
    elif method == "gradient_attention" and all(found.weighs == "matrix" for found in net.operators):
        shares = _shares(net, _propagated(net, images))
    else:
        layers = [_shares(net, layer) for layer in _layers(net, images, method)]
        shares = _sum_to_one(torch.stack(layers).mean(0))  # the sum is below 1 if a block is off
    return shares.unflatten(-1, grid)


@torch.no_grad()
def layer_maps(model: nn.Module, images: Tensor, method: str) -> Tensor:
    """The map of every block in one pass: (B, C, height, width) → (depth, B, h, w).

    `layer_maps(...)[i]` is `token_map(..., block=i)`. Takes and raises as `token_map`.
    """
    net = _checked(model, method)
    grid = net.grid(*images.shape[-2:])
    if method == "random":
        return _random(images, grid).expand(len(net.operators), -1, -1, -1)
    return torch.stack([_shares(net, layer) for layer in _layers(net, images, method)]).unflatten(-1, grid)


def _lacking(net: Backbone, method: str) -> list[Operator]:
    """The operators that a method does not support."""
    readable = {"rollout": ("matrix",), "weights": ("vector",), "random": ("matrix", "vector", "nothing")}
    return [found for found in net.operators if found.weighs not in readable.get(method, ("matrix", "vector"))]


def _checked(model: nn.Module, method: str) -> Backbone:
    net = backbone(model)
    if method not in METHODS:
        raise UsageError(f"method={method!r} is unknown: choose one of {', '.join(METHODS)}")
    for found in _lacking(net, method):
        raise UsageError(
            f"method={method!r} cannot be read from {found.name}, which has {HAS[found.weighs]}: "
            f"expected one of {', '.join(offered(model))}"
        )
    return net


def _layers(net: Backbone, images: Tensor, method: str) -> Iterator[Tensor]:
    """Yields a method's value of each token per block, not normalised: (B, N)."""
    if method == "rollout":
        yield from _rollout(net, images)
    elif method == "gradient_attention":
        for relevance in _relevances(net, images):
            yield (relevance if relevance.ndim == 3 else _read(net, relevance)).mean(1)
    else:
        for found, step in net.run(net.embed(images)):
            if found.graph is not None and method != "attention":
                yield _of_graph(net, found, found.graph(step.tokens), method).mean(1)
                continue
            W = precise(found.weights(step.tokens)).abs()
            off = (W == 0).flatten(2).all(-1, keepdim=True)
            if found.weighs == "vector" and method not in ("attention", "weights", "eigenvector"):
                W = W.unsqueeze(-2).expand(*W.shape, W.shape[-1])
            yield (W if W.ndim == 3 else _of_matrix(net, found, W, method)).masked_fill(off, 0).mean(1)


def _of_graph(net: Backbone, found: Operator, graph: LowRankGraph, method: str) -> Tensor:
    """`_of_matrix` of a matrix that is given by its factors: exactly, and without it."""
    assert found.discounts is not None
    if method == "eigenvector":
        values = graph.eigenvector_centrality("left").vector
    elif method == "visits":
        start = torch.zeros_like(graph.U[..., 0])
        start[..., slice(0, 1) if net.by_class_token else slice(net.prefix, None)] = 1
        values = graph.visits(start / start.sum(-1, keepdim=True), found.discounts)
    else:
        values = graph.katz(found.discounts, "in" if method == "katz_in" else "out")
    return values.masked_fill(graph.empty.unsqueeze(-1), 0)


def _of_matrix(net: Backbone, found: Operator, W: Tensor, method: str) -> Tensor:
    """(B, H, N, N) → (B, H, N)."""
    if method == "attention":
        return _read(net, W)
    if method == "eigenvector":
        return eigenvector_centrality(W, "left").vector
    gamma: float | Tensor = DISCOUNT
    if found.discounts is not None:
        gamma = found.discounts
    else:
        W = _stochastic(W)
    if method != "visits":
        return katz(W, gamma, "in" if method == "katz_in" else "out")
    with warnings.catch_warnings():
        # Rows of Pure InfSA's M may sum to more than 1: visits are then path weights, which still make a map.
        warnings.simplefilter("ignore", RuntimeWarning)
        return _read(net, absorbing_chain(W, gamma).F)


def _rollout(net: Backbone, images: Tensor) -> Iterator[Tensor]:
    R: Tensor | None = None
    off: Tensor | bool = True
    for _, W in net.weights(images):
        off = off & (W == 0).flatten(1).all(-1)[:, None]
        step = _stochastic(torch.eye(W.shape[-1], dtype=W.dtype, device=W.device) + W.mean(1))
        R = step if R is None else step @ R
        yield _read(net, R).masked_fill(off, 0)


def _propagated(net: Backbone, images: Tensor) -> Tensor:
    """pᵀ (R − I) after the last block, (B, N)."""
    R: Tensor | None = None  # R − I
    for relevance in _relevances(net, images):
        A = relevance.mean(1)
        R = A if R is None else R + A + A @ R
    assert R is not None
    return _read(net, R)


def _relevances(net: Backbone, images: Tensor) -> Iterator[Tensor]:
    """Yields (W ⊙ ∂y/∂W)⁺ per block, y the logit of each image's predicted class: (B, H, N, N) or (B, H, N)."""
    # Lightning evaluates in inference mode, which allows no gradients.
    with torch.inference_mode(False), torch.enable_grad():
        # requires_grad of the images makes autograd record even if all parameters are frozen.
        steps = [step for _, step in net.run(net.embed(images.detach().clone().requires_grad_()))]
        y = net.logits(steps[-1].out).max(-1).values.sum()
        attended = [step.attended for step in steps if step.attended is not None]
        gradients = torch.autograd.grad(y, attended, materialize_grads=True)
    for found, step, gradient in zip(net.operators, steps, gradients, strict=True):
        with torch.inference_mode(False), torch.enable_grad():
            assert found.output is not None
            tokens = step.tokens.detach()
            W = precise(found.weights(tokens)).detach().requires_grad_()
            (by_weight,) = torch.autograd.grad(found.output(W, tokens), W, gradient)
        yield (W.detach() * by_weight).clamp_min(0)


def _random(images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Uniform numbers that depend on each image's content: (B, h, w)."""
    maps = []
    for image in images:
        content = zlib.crc32(image.detach().float().cpu().numpy().tobytes())
        maps.append(torch.rand(grid, generator=torch.Generator().manual_seed(content)))
    return _sum_to_one(torch.stack(maps).flatten(1).to(images.device, precision(images))).unflatten(-1, grid)


def _read(net: Backbone, W: Tensor) -> Tensor:
    """pᵀ W: (..., N, N) → (..., N)."""
    return W[..., 0, :] if net.by_class_token else W[..., net.prefix :, :].mean(-2)


def _stochastic(W: Tensor) -> Tensor:
    """Rows summing to 1, or 0: (..., N, N)."""
    total = W.sum(-1, keepdim=True)
    return W / torch.where(total == 0, 1, total)


def _shares(net: Backbone, read: Tensor) -> Tensor:
    """Values of tokens as shares of the patches, nonnegative and summing to 1 or 0: (..., N) → (..., h · w)."""
    patches = read[..., net.prefix :].clamp_min(0)
    low, peak = patches.aminmax(dim=-1, keepdim=True)
    return _sum_to_one(torch.where(peak - low <= ROUNDING * peak, peak, patches))


def _sum_to_one(shares: Tensor) -> Tensor:
    """Divides by the sum, which may be 0; by the largest value first, because the sum of tiny numbers may underflow."""
    peak = shares.amax(-1, keepdim=True)
    shares = shares / torch.where(peak == 0, 1, peak)
    return shares / torch.where(peak == 0, 1, shares.sum(-1, keepdim=True))
