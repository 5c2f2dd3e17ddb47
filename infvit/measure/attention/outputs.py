"""What the attention of a block gives its tokens: of what rank, which tokens get the same, and how much is their own.

It is measured on the outputs alone, so that operators without weights of tokens have it, too.
"""

from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from infvit.attention.tokens import precise
from infvit.measure.attention.blocks import backbone

TOLERANCE = 1e-3
"""Vectors of tokens count as equal up to this distance over the root mean square of the tokens' norms."""


@dataclass(frozen=True, eq=False)
class Outputs:
    """The result of `outputs`, each (depth, B) in float32 or better; NaN where undefined, as for Y = 0.

    Y (N, D) is what the attention adds to the tokens of one image, the class token included, after its output
    projection; Q (N, D) are their queries, those of all heads together.

    Attributes:
        effective_rank: exp(−Σ_k p_k ln p_k), p_k = σ_k / Σ σ, σ the singular values of Y (Roy and Vetterli, "The
            effective rank", EUSIPCO 2007): from 1, if all tokens get multiples of one vector, to min(N, D).
        collisions: the share of the pairs of tokens with different queries that get equal outputs, up to `TOLERANCE`
            (of softmax and linear attention: arXiv:2412.06590). NaN without queries that are known, or different ones.
        own_share: Σ_i ‖Y_i − mean Y‖² / Σ_i ‖Y_i‖², the share of the update that is not the same for all tokens: 0, if
            they get one vector, to 1, if the mean is 0.
    """

    effective_rank: Tensor
    collisions: Tensor
    own_share: Tensor


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor) -> Outputs:
    """Computes the figures of every block for every image.

    Args:
        model: infvit's VisionTransformer or timm's, in evaluation mode.
        images: (B, C, height, width), as `model` takes them.

    Raises:
        UsageError: if the model is another.
    """
    net = backbone(model)
    blocks = []
    for found, step in net.run(net.embed(images)):
        if step.attended is None:
            blocks.append(images.new_full((len(fields(Outputs)), len(images)), torch.nan))
        else:
            Q = None if found.queries is None else found.queries(step.tokens).transpose(1, 2).flatten(2)
            blocks.append(_of_block(precise(step.attended), Q))
    return Outputs(*torch.stack(blocks, 1))


def _of_block(Y: Tensor, Q: Tensor | None) -> Tensor:
    """The fields of `Outputs` in order: (B, N, D), (B, N, D) → (3, B)."""
    known = Y.isfinite().flatten(1).all(-1)
    singular = torch.linalg.svdvals(Y.where(known[:, None, None], 0))  # LAPACK refuses NaN
    p = singular / singular.sum(-1, keepdim=True)
    rank = torch.special.entr(p).sum(-1).exp()
    collisions = torch.full_like(rank, torch.nan)
    if Q is not None:
        different = ~_equal(precise(Q))
        collisions = (different & _equal(Y)).sum((-2, -1)).to(rank.dtype) / different.sum((-2, -1))
    own = (Y - Y.mean(1, keepdim=True)).square().sum((-2, -1)) / Y.square().sum((-2, -1))
    return torch.stack([rank, collisions, own]).masked_fill(~known, torch.nan)


def _equal(x: Tensor) -> Tensor:
    """Whether two tokens are equal up to `TOLERANCE`: (B, N, D) → (B, N, N)."""
    scale = x.square().sum(-1).mean(-1).sqrt()
    # The other way to compute distances, by a matrix product, has errors of this size.
    distances = torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")
    return distances <= TOLERANCE * scale[:, None, None]
