"""Published numbers stand beside the rows that they belong to, with their source, and nowhere else."""

import pytest

from infvit.compare import Comparison, records
from infvit.compare.published import published
from tests.compare.conftest import IMAGENET


@pytest.mark.parametrize(
    ("model", "depth", "variant", "top1", "v2", "parameters"),
    [
        ("vit", 4, "", 0.815, None, 57_700_000),
        ("linear_infvit", 4, "", 0.847, 0.798, 53_500_000),
        ("infvit", 4, "", 0.851, 0.795, 57_700_000),
        ("infvit", 24, "size.depth=24 +size.extra_proj=true", 0.854, 0.798, 330_600_000),
        ("infvit", 24, "backbone.depth=24", 0.854, 0.798, 330_600_000),
        ("infvit_24l", 24, "", 0.854, 0.798, 330_600_000),
    ],
)
def test_the_papers_table_is_found_by_data_model_and_size(model, depth, variant, top1, v2, parameters, make_result):
    found = published(make_result(model, **(IMAGENET | {"depth": depth, "variant": variant})))
    assert found is not None
    assert (found.source, found.top1, found.v2_top1, found.parameters) == ("arXiv:2603.00175", top1, v2, parameters)


OTHERS = {"data": "digits", "depth": 12, "dim": 64, "image_size": 384, "patch": 8, "recipe": "deit_100"}
OTHERS |= {"epochs": 100, "heads": 4}
VARIANTS = ["model.attention.gamma=0.5", "backbone.pooling=mean size.depth=4", "recipe.epochs=300"]
VARIANTS += ["size.mlp_ratio=1", "~size.extra_proj"]


@pytest.mark.parametrize("change", [*OTHERS.items(), *(("variant", variant) for variant in VARIANTS)], ids=str)
def test_nothing_is_published_for_anything_else(change, make_result):
    assert published(make_result("infvit", **(IMAGENET | dict([change])))) is None


def test_every_format_marks_them_as_published_and_names_the_source(make_result, printed):
    measured = {"test/top1": 0.79, "v2/top1": 0.66}
    comparison = Comparison.from_results(
        [make_result("linear_infvit", **IMAGENET, metrics=measured), make_result("other", **IMAGENET)]
    )
    text = printed(comparison)
    for words in ("84.7 V2 79.8 (53.5M)", "published", "not measured here: arXiv:2603.00175", "66.00"):
        assert words in text
    rows = {row["model"]: row for row in records(comparison)}
    linear, other = rows["linear_infvit"], rows["other"]
    assert (linear["published_top1"], linear["published_v2_top1"], linear["v2_top1"]) == (0.847, 0.798, 0.66)
    assert linear["published_source"] == "arXiv:2603.00175"
    assert other["published_top1"] is other["v2_top1"] is None


def test_digits_have_no_published_column_and_no_further_test_set(make_result, printed):
    comparison = Comparison.from_results([make_result("vit"), make_result("infvit")])
    text = printed(comparison).partition("</style>")[2] or printed(comparison)
    assert "published" not in text.lower()
    assert "V2" not in text
    assert not [name for name in records(comparison)[0] if "published" in name or "v2" in name]
