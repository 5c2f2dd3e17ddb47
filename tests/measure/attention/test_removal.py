"""Removal of patches in the order of their relevance, and the areas over and under its curves."""

from itertools import pairwise

import pytest
import timm
import torch
from torch import nn

from infvit.attention import ATTENTIONS, SoftmaxAttention
from infvit.errors import UsageError
from infvit.measure.attention.patch_removal import REMOVALS, areas, faithfulness, remover, shares
from infvit.vit import VisionTransformer

GRID = (4, 4)
AT = shares(0.1)


class Evidence(nn.Module):
    """Depends on two patches of 2 × 2 pixels alone: the brighter they are, the more probable is class 1."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.zeros(8, 8)
        self.weight[2:4, 4:6] = self.weight[6:8, 0:2] = 1 / 8

    def forward(self, images):
        score = 4 * ((images.mean(1) * self.weight).sum((1, 2)) - 1.6)
        return torch.stack([torch.zeros_like(score), score], 1)


def evidence(count: int) -> tuple[Evidence, torch.Tensor, torch.Tensor]:
    """The model, images that it classifies confidently, and the map of the pixels that it depends on."""
    draw = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 8, 8, generator=draw) + 16 * Evidence().weight
    oracle = torch.zeros(count, *GRID)
    oracle[:, 1, 2] = oracle[:, 3, 0] = 0.5
    return Evidence(), images, oracle


def vit(attention: type = SoftmaxAttention, **options: object) -> VisionTransformer:
    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 2, "dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3} | options
    return VisionTransformer(attention, **options).eval()


def naive_kept(model, image, relevance, order, at):
    """The formula, an image at a time: p(share) / p(0) with the first patches of `order` in the mean colour."""
    ranked = sorted(range(16), key=lambda i: -relevance.flatten()[i] if order == "MoRF" else relevance.flatten()[i])
    first = model(image[None]).softmax(-1)[0]
    kept = []
    for share in at:
        changed = image.clone()
        for patch in ranked[: round(share * 16)]:
            row, column = divmod(patch, 4)
            changed[:, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = image.mean((1, 2), keepdim=True)[:, :1, :1]
        kept.append(float(model(changed[None]).softmax(-1)[0, first.argmax()] / first.max()))
    return kept


def test_curves_and_areas_equal_the_formula_image_by_image():
    model, images, _ = evidence(5)
    maps = torch.rand(5, *GRID, generator=torch.Generator().manual_seed(1))
    found = faithfulness(remover("mean", model, images, GRID), maps, torch.ones(5, dtype=torch.long), AT)
    for i, (image, relevance) in enumerate(zip(images, maps, strict=True)):
        for order, curves in zip(("MoRF", "LeRF"), found.kept[i], strict=True):
            expected = naive_kept(model, image, relevance, order, AT)
            assert curves.tolist() == pytest.approx(expected, rel=1e-5)
        expected = naive_kept(model, image, relevance, "MoRF", AT)
        area = sum((a + b) / 2 * 0.1 for a, b in pairwise(expected))
        assert float(areas(found.kept, AT)[0][i]) == pytest.approx(1 - area, rel=1e-5)


@pytest.mark.parametrize("removal", ["mean", "blur"])
def test_the_oracle_map_beats_random_maps_and_its_inverse_loses(removal):
    model, images, oracle = evidence(40)
    labels = torch.ones(40, dtype=torch.long)
    remove = remover(removal, model, images, GRID)
    random = torch.rand(40, *GRID, generator=torch.Generator().manual_seed(2))
    found = [faithfulness(remove, maps, labels, AT) for maps in (oracle, random, 0.5 - oracle)]
    morf, lerf = ([float(areas(each.kept, AT)[k].mean()) for each in found] for k in (0, 1))
    assert morf == sorted(morf, reverse=True)
    assert lerf == sorted(lerf, reverse=True)
    assert morf[0] > morf[1] + 0.2
    assert found[0].correct[:, 0, 0].all()
    # Both patches of evidence are among the first two of sixteen.
    after = found[0].kept[:, 0, 2]
    assert torch.allclose(after, found[0].kept[:, 0, -1], atol=0.05)


@pytest.mark.parametrize("name", ["softmax", "infsa", "linear_infsa", "elu_linear"])
def test_dropping_tokens_equals_masking_them_in_every_block(name):
    model = vit(ATTENTIONS[name])
    images = torch.randn(3, 3, 8, 8)
    removed = torch.zeros(3, *GRID, dtype=torch.bool)
    for image, (row, column) in enumerate([(0, 0), (1, 3), (2, 2)]):
        removed[image, row, column] = removed[image, 3, 3] = True
    with torch.no_grad():
        x = model.embed(images)
        mask = torch.cat([torch.zeros(3, 1, dtype=torch.bool), removed.flatten(1)], 1)
        for block in model.blocks:  # what is not read any more may hold anything
            x = x + block.attn(block.norm1(x), key_padding_mask=mask)
            x = x + block.mlp(block.norm2(x))
        expected = model.forward_head(model.norm(x))
        found = remover("tokens", model, images, GRID)(removed)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def timms_vit() -> nn.Module:
    """With registers after its class token."""
    torch.manual_seed(0)
    options = {"img_size": 8, "patch_size": 2, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", reg_tokens=2, **options).eval()


@pytest.mark.parametrize("make", [vit, timms_vit])
@pytest.mark.parametrize("removal", REMOVALS)
def test_removing_no_patch_keeps_the_image_and_removing_all_leaves_nothing(removal, make):
    model = make()
    with torch.no_grad():
        model.pos_embed.mul_(3)
        images = torch.rand(2, 3, 8, 8)
        remove = remover(removal, model, images, GRID)
        removed = torch.zeros(2, *GRID, dtype=torch.bool)
        torch.testing.assert_close(remove(removed), model(images))
        flat = images.mean((2, 3), keepdim=True).expand_as(images)
        if removal == "mean":
            torch.testing.assert_close(remove(~removed), model(flat))
        if removal == "tokens":  # the class token alone, the same for every image
            torch.testing.assert_close(*remove(~removed))
            removed[:, 1, 1] = True
            assert not torch.allclose(remove(removed), model(images), atol=1e-4)


@pytest.mark.parametrize("attention", ATTENTIONS.values())
def test_tokens_of_every_attention_can_be_dropped_to_the_last(attention):
    model = vit(attention)
    remove = remover("tokens", model, torch.randn(2, 3, 8, 8), GRID)
    maps = torch.rand(2, *GRID)
    found = faithfulness(remove, maps, torch.zeros(2, dtype=torch.long), shares(0.5))
    assert found.kept.isfinite().all()
    assert found.kept[:, 0, 0].tolist() == [1.0, 1.0]


def test_equal_relevance_is_removed_in_random_order():
    seen = torch.zeros(GRID)

    def remove(removed):
        if removed.sum() == 4 * 200:
            seen.add_(removed.float().sum(0))
        return torch.zeros(200, 2)

    faithfulness(remove, torch.zeros(200, *GRID), torch.zeros(200, dtype=torch.long), [0, 0.25, 1])
    assert seen.min() > 50  # 100 of both orders expected of each patch, 0 or 400 row by row


def test_steps_that_do_not_divide_end_at_all_patches():
    assert shares(0.4) == pytest.approx([0, 0.4, 0.8, 1])
    assert shares(1) == [0, 1]
    assert shares(0.1)[-1] == 1.0
    assert len(shares(0.1)) == 11
    for step in (0, -0.1, 1.5):
        with pytest.raises(UsageError, match=f"step={step} is not a share of the patches"):
            shares(step)


def test_tokens_need_a_class_token_to_be_left():
    with pytest.raises(UsageError, match=r"removal=tokens needs a class token.*: use removal=mean or removal=blur"):
        remover("tokens", vit(class_token=False), torch.randn(2, 3, 8, 8), GRID)
