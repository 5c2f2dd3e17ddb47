"""What layers put out over tokens, against the formulas, and its extremes: one vector for all, and no mixing."""

import math
from functools import partial

import numpy as np
import pytest
import timm
import torch

from infvit.attention import LinearInfSA, NoAttention, SoftmaxAttention
from infvit.measure.attention.outputs import outputs
from infvit.vit import VisionTransformer
from tests.check.plain import Plain

SIZE = {"img_size": 8, "patch_size": 2, "dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
IMAGES = torch.randn(3, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


class Coarse(NoAttention):
    """Each head gives one of two vectors, so that some tokens with different queries get equal outputs."""

    def _forward(self, x, masks, first=None):
        _, V = super()._forward(x, masks, first)
        return V[..., :1].sign().expand_as(V), V


def model(attention):
    torch.manual_seed(0)
    net = VisionTransformer(attention, **SIZE).double().eval()
    for name, parameter in net.named_parameters():
        if name.endswith("attn.proj.bias"):
            parameter.data.normal_()
    return net


def by_the_formulas(Y, Q):
    """Of one image: Y and Q (N, D)."""
    shares = np.linalg.svd(Y)[1] / np.linalg.svd(Y)[1].sum()
    different = equal = 0
    for i in range(len(Y)):
        for j in range(i):
            if np.linalg.norm(Q[i] - Q[j]) > 1e-3 * math.sqrt((Q**2).sum() / len(Q)):
                different += 1
                equal += np.linalg.norm(Y[i] - Y[j]) <= 1e-3 * math.sqrt((Y**2).sum() / len(Y))
    own = sum(np.linalg.norm(y - Y.mean(0)) ** 2 for y in Y) / sum(np.linalg.norm(y) ** 2 for y in Y)
    return math.exp(-sum(p * math.log(p) for p in shares if p > 0)), equal / different, own


@pytest.mark.parametrize("attention", [SoftmaxAttention, LinearInfSA, NoAttention, Coarse])
def test_every_figure_equals_its_formula(attention):
    net = model(attention)
    found, named = outputs(net, IMAGES), net.features(IMAGES)
    for i, block in enumerate(net.blocks):
        Q = block.attn.heads(named[f"blocks.{i}.norm1"])[0].transpose(1, 2).flatten(2)
        for b in range(3):
            expected = by_the_formulas(named[f"blocks.{i}.attn"][b].detach().numpy(), Q[b].detach().numpy())
            got = [float(values[i, b]) for values in vars(found).values()]
            assert got == pytest.approx(expected, rel=1e-6, abs=1e-9)


def test_one_vector_for_all_tokens_is_the_one_extreme_and_no_attention_the_other():
    for_all, alone = outputs(model(LinearInfSA), IMAGES), outputs(model(NoAttention), IMAGES)
    assert for_all.effective_rank.numpy() == pytest.approx(1, abs=1e-6)
    assert (for_all.collisions == 1).all()
    assert for_all.own_share.numpy() == pytest.approx(0, abs=1e-12)
    assert (alone.collisions == 0).all()
    near = outputs(model(partial(LinearInfSA, locality=3)), IMAGES)
    for name in ("effective_rank", "own_share"):
        assert (getattr(for_all, name) < getattr(near, name)).all()
        assert (getattr(for_all, name) < getattr(alone, name)).all()
    coarse = outputs(model(Coarse), IMAGES).collisions[0]
    assert ((coarse > 0) & (coarse < 1)).all()


def test_what_is_not_known_is_nan():
    own = outputs(model(Plain), IMAGES)
    assert own.collisions.isnan().all()
    assert (own.effective_rank > 1).all()
    broken = IMAGES.clone()
    broken[1, 0, 0, 0] = torch.nan
    found = outputs(model(SoftmaxAttention), broken)
    for values in vars(found).values():
        assert values.isnan()[:, 1].all()
        assert values[:, [0, 2]].isfinite().all()
    of_timm = outputs(timm.create_model("test_vit").eval(), torch.randn(2, 3, 160, 160))
    assert all(values.isfinite().all() for values in vars(of_timm).values())
