"""Maps against boxes: scikit-learn's areas, a count of pixels, and flat maps."""

import pytest
import torch
from sklearn.metrics import average_precision_score, roc_auc_score

from infvit.measure.attention.localisation import THRESHOLDS, localisation

SIZE = 28


def boxes(count: int, seed: int = 0) -> torch.Tensor:
    """Some patches of 4 × 4 pixels: bool (count, 28, 28)."""
    inside = torch.rand(count, 7, 7, generator=torch.Generator().manual_seed(seed)) < 0.2
    return inside.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_a_map_of_zeros_scores_chance_level_and_is_counted():
    inside = boxes(6)
    maps = torch.rand(6, 7, 7)
    maps[2], maps[4] = 0, 1 / 49
    found = localisation(maps, inside, (*THRESHOLDS, 0.5))
    assert found.flat.tolist() == [False, False, True, False, True, False]
    for image in (2, 4):
        assert float(found.roc_auc[image]) == 0.5
        share = float(inside[image].double().mean())
        for figure in (found.boxed, found.pr_auc, found.pointing, found.iou.amin(1), found.iou.amax(1)):
            assert float(figure[image]) == pytest.approx(share, rel=1e-6)
    assert all(figure.isfinite().all() for figure in found)


@pytest.mark.parametrize("upsampling", ["nearest", "bilinear"])
def test_both_areas_agree_with_scikit_learn_image_by_image(upsampling):
    draw = torch.Generator().manual_seed(2)
    inside = boxes(20, seed=3)
    maps = torch.rand(20, 7, 7, generator=draw)
    maps[::4] = (4 * maps[::4]).round() / 4  # with ties
    maps[1] *= 1e-6
    found = localisation(maps, inside, (0.5,), upsampling)
    pixels = torch.nn.functional.interpolate(maps[:, None].double(), (SIZE, SIZE), mode=upsampling)[:, 0]
    for i in range(20):
        truth, values = inside[i].flatten().numpy(), pixels[i].flatten().numpy()
        assert float(found.roc_auc[i]) == pytest.approx(roc_auc_score(truth, values), abs=1e-5)
        assert float(found.pr_auc[i]) == pytest.approx(average_precision_score(truth, values), abs=1e-5)


def test_pointing_and_overlap_equal_a_count_pixel_by_pixel():
    inside = torch.zeros(1, 4, 4, dtype=torch.bool)
    inside[0, :2, :2] = True
    maps = torch.tensor([[[1.0, 0.4], [1.0, 0.0]]])  # the largest value half inside
    found = localisation(maps, inside, (0.0, 0.4, 0.5))
    assert float(found.pointing) == 0.5
    assert found.iou[0].tolist() == pytest.approx([4 / 16, 4 / 12, 4 / 8])
