"""Statistics of a model's heads: which are off, how many tokens they attend to, and how close they are to rank one.

Every number belongs to one block, head and image, so that means and intervals are over images. They use absolute
weights |W|; the operators are from arXiv:2603.00175.
"""

import math
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from infvit.attention import Attention, LinearInfSA
from infvit.attention.tokens import precise
from infvit.graph import LowRankGraph, ahat, eigenvector_centrality, perron_cosine, spectral_radius
from infvit.measure.attention.blocks import Operator, backbone

TOLERANCE = 1e-5
"""Of power iteration, below the spread over images."""

MOST_WEIGHTS = 2**26
"""Entries of weight matrices in memory at a time: a quarter of a gigabyte."""


@dataclass(frozen=True, eq=False)
class Health:
    """The result of `health`, each (depth, H, B) in float32 or better.

    NaN where undefined: for other operators than those in parentheses and, except for `off` and `gamma`, if a head is
    off. W is the weight matrix of a head; for Linear-InfSA W = 1 aᵀ in the first six, and in the others the quadratic
    operator Ahat of the same Q and K (Pure InfSA's), so that both InfSA are compared by the same quantity.

    Attributes:
        off: 1 if all weights are 0, so that the head adds nothing; otherwise 0.
        entropy: in nats, the mean over rows of −Σ_j p_j ln p_j, p a row of |W| over its sum, without rows of zeros.
        entropy_share: of the largest possible, entropy / ln N (0 for one token).
        effective_tokens: the mean over rows of exp(entropy), the effective number of tokens, 1 to N.
        gamma: the discount (InfSA).
        spectral_radius: of gamma |W| for InfSA, which must stay below 1, and of |W| for others.
        rank_one: the share of W's variance that its best rank-one approximation explains, σ₁² / ‖W‖_F².
        rank_one_linear: the share that the best multiple of Linear-InfSA's operator 1 aᵀ explains, with a from the same
            Q and K: (Σ_ij W_ij a_j)² / (‖W‖_F² N ‖a‖²), at most rank_one (InfSA).
        cosine_left: of Linear-InfSA's weights a with the left Perron vector of W (InfSA; published: 0.985).
        cosine_right: with the right one.
        cosine_kernel: with the left Perron vector of KernelInfSA's graph relu(Q) relu(K)ᵀ of the same Q and K (InfSA).
        near_singular: 1 if the spectral radius is within 1e-5 of 1, so that the series of all hops takes 100,000 hops
            to converge and its linear system loses five digits (InfSA).
    """

    off: Tensor
    entropy: Tensor
    entropy_share: Tensor
    effective_tokens: Tensor
    gamma: Tensor
    spectral_radius: Tensor
    rank_one: Tensor
    rank_one_linear: Tensor
    cosine_left: Tensor
    cosine_right: Tensor
    cosine_kernel: Tensor
    near_singular: Tensor

    def summary(self) -> dict[str, Tensor]:
        """Mean over images, (depth, H), of every field that is not NaN everywhere."""
        return {name: values.nanmean(-1) for name, values in vars(self).items() if not values.isnan().all()}


@torch.no_grad()
def health(model: nn.Module, images: Tensor, spectra: bool = True) -> Health:
    """Computes the statistics of every block and head for every image.

    Holds the weights of one block at a time, of as many images as fit into `MOST_WEIGHTS` entries (at least one).

    Args:
        model: infvit's VisionTransformer or timm's, in evaluation mode.
        images: (B, C, height, width), as `model` takes them.
        spectra: whether to compute what needs power iteration, from `spectral_radius` on; otherwise these are NaN.

    Raises:
        UsageError: if the model is another, or its attention has no weights.
    """
    net = backbone(model)
    blocks = []
    for found, step in net.run(net.embed(images)):
        at_a_time = max(MOST_WEIGHTS // (found.heads * step.out.shape[1] ** 2), 1)
        slices = [_of_block(found, tokens, spectra) for tokens in step.tokens.split(at_a_time)]
        blocks.append(torch.cat(slices, -1))
    return Health(*torch.stack(blocks, 1))


def _of_block(found: Operator, x: Tensor, spectra: bool) -> Tensor:
    """The fields of `Health` in order: (B, N, D) → (12, H, B)."""
    weights = precise(found.weights(x)).abs()
    rows = weights if weights.ndim == 4 else weights.unsqueeze(-2)
    off = (rows == 0).flatten(2).all(-1)
    numbers = {field.name: torch.full_like(rows[..., 0, 0], torch.nan) for field in fields(Health)}
    entropy = torch.special.entr(rows / rows.sum(-1, keepdim=True)).sum(-1)  # NaN for a row of zeros
    numbers["entropy"] = entropy.nanmean(-1)
    numbers["entropy_share"] = numbers["entropy"] / math.log(max(rows.shape[-1], 2))
    numbers["effective_tokens"] = entropy.exp().nanmean(-1)
    if spectra:
        numbers |= _spectra(found, x, weights)
    numbers = {name: values.masked_fill(off, torch.nan) for name, values in numbers.items()}
    numbers["off"] = off.to(rows.dtype)
    if found.discounts is not None:
        numbers["gamma"] = found.discounts.to(rows.dtype).expand_as(off)
    return torch.stack([values.mT for values in numbers.values()])


def _spectra(found: Operator, x: Tensor, weights: Tensor) -> dict[str, Tensor]:
    """The fields that need power iteration, each (B, H)."""
    layer = found.layer
    W = weights if layer is None or weights.ndim == 4 else ahat(layer, x)
    size = torch.linalg.matrix_norm(W, keepdim=True)
    W = W / torch.where(size == 0, 1, size)
    # By SVD, because power iteration is slow where two singular values are close. LAPACK refuses NaN: restored below.
    known = W.isfinite().flatten(2).all(-1)
    largest = torch.linalg.svdvals(W.where(known[..., None, None], 0))[..., 0]
    numbers = {"rank_one": largest.square().where(known, torch.nan)}
    if layer is None or found.discounts is None:
        return numbers | {"spectral_radius": spectral_radius(W, TOLERANCE) * size[..., 0, 0]}
    a = _linear_weights(layer, x)
    left, right = (eigenvector_centrality(W, side, TOLERANCE) for side in ("left", "right"))
    numbers["cosine_left"], numbers["cosine_right"] = perron_cosine(a, left.vector, right.vector)
    applied = weights.sum(-1) if weights.ndim == 3 else left.eigenvalue * size[..., 0, 0]
    numbers["spectral_radius"] = found.discounts * applied
    Q, K, _ = (precise(t) for t in layer.heads(x))
    kernel = LowRankGraph(Q.relu(), K.relu()).eigenvector_centrality("left").vector
    numbers["cosine_kernel"] = perron_cosine(a, kernel, kernel).left
    numbers["near_singular"] = (numbers["spectral_radius"] > 1 - 1e-5).to(a.dtype)
    direction = a / torch.linalg.vector_norm(a, dim=-1, keepdim=True)
    numbers["rank_one_linear"] = (W.sum(-2) * direction).sum(-1).square() / W.shape[-1]
    return numbers


def _linear_weights(layer: Attention, x: Tensor) -> Tensor:
    """Linear-InfSA's weights for the Q and K of a layer: (B, N, D) → (B, H, N)."""
    if layer.weighs == "vector":
        return precise(layer.weights(x))
    with torch.device("meta"):  # draws no random numbers, so that training is not affected
        twin = LinearInfSA(layer.dim, layer.num_heads)
    twin.qkv = layer.qkv
    return precise(twin.weights(x))
