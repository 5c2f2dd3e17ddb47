"""Differences to the baseline, seed by seed, against SciPy's paired t-test."""

import numpy as np
import pytest
from scipy import stats

from infvit.compare import Comparison, Row
from infvit.compare.columns import table
from infvit.compare.notes import remarks
from infvit.errors import UsageError
from tests.compare.conftest import MakeResult

VIT = {0: (0.90, 1000.0), 1: (0.80, 1010.0), 2: (0.94, 990.0), 3: (0.85, 1005.0)}
INFVIT = {0: (0.93, 1200.0), 1: (0.84, 1190.0), 2: (0.95, 1230.0), 3: (0.90, 1180.0)}


def runs(make_result: MakeResult, model: str, values: dict[int, tuple[float, float]], **fields: object) -> list:
    return [make_result(model, s, top1, train_images_per_second=x, **fields) for s, (top1, x) in values.items()]


def row(comparison: Comparison, name: str) -> Row:
    return next(row for row in comparison.rows if row.name == name)


def cell(row: Row, heading: str) -> str:
    """What the table prints of a row."""
    (column,) = [column for column in table(Comparison((row,))).columns if column.heading == heading]
    return column.cell(row)


def points(row: Row) -> str:
    return cell(row, "Δ top-1")


def speed(row: Row) -> str:
    return cell(row, "speed")


def test_the_difference_and_its_interval_are_the_paired_t_tests(make_result):
    comparison = Comparison.from_results(runs(make_result, "vit", VIT) + runs(make_result, "infvit", INFVIT))
    paired = row(comparison, "infvit").paired
    ours, theirs = np.array(list(INFVIT.values())).T, np.array(list(VIT.values())).T
    oracle = stats.ttest_rel(ours[0], theirs[0]).confidence_interval(0.95)
    assert (paired.top1.low, paired.top1.high) == (pytest.approx(oracle.low), pytest.approx(oracle.high))
    oracle = stats.ttest_rel(np.log(ours[1]), np.log(theirs[1])).confidence_interval(0.95)
    expected = (stats.gmean(ours[1]) / stats.gmean(theirs[1]), np.exp(oracle.low), np.exp(oracle.high))
    assert paired.speed == pytest.approx(expected)
    # The seeds agree on the difference more than on the accuracy: that is what pairing is for.
    top1 = row(comparison, "infvit").top1.half_width
    assert paired.top1.half_width is not None
    assert top1 is not None
    assert paired.top1.half_width < top1 / 2


def test_only_seeds_that_both_have_finished_are_paired(make_result):
    ours = runs(make_result, "infvit", {1: (0.84, 1.0), 2: (0.95, 1.0), 7: (0.10, 1.0)})
    failed = make_result("infvit", 0, 0.1, status="failed")
    comparison = Comparison.from_results([*runs(make_result, "vit", VIT), *ours, failed])
    paired = row(comparison, "infvit").paired
    assert paired.top1.n == 2
    assert paired.top1.mean == pytest.approx(((0.84 - 0.80) + (0.95 - 0.94)) / 2)
    assert "infvit: of 3 finished seeds, 2 paired with vit" in remarks(comparison)


def test_rows_that_do_not_compare_have_no_difference(make_result):
    deep = runs(make_result, "infvit", INFVIT, depth=24)
    usual = runs(make_result, "linear_infvit", INFVIT)
    comparison = Comparison.from_results([*runs(make_result, "vit", VIT), *usual, *deep])
    assert points(row(comparison, "infvit")) == speed(row(comparison, "infvit")) == "–"
    assert points(row(comparison, "vit")) == speed(row(comparison, "vit")) == "baseline"
    assert points(row(comparison, "linear_infvit")) == "+3.25 ± 2.72"
    assert speed(row(comparison, "linear_infvit")) == "1.20x (1.15 – 1.25)"


def test_each_depth_and_each_variant_has_the_baseline_of_its_own_kind(make_result):
    kinds = {"plain": {}, "deep": {"depth": 24}, "faint": {"variant": "backbone.std=0.02"}}
    shift = dict(zip(kinds, (0.0, 0.1, 0.2), strict=True))
    results = []
    for kind, fields in kinds.items():
        results += runs(make_result, "vit", dict.fromkeys((0, 1), (0.5, 1.0)), **fields)
        results += runs(make_result, "infvit", dict.fromkeys((0, 1), (0.5 + shift[kind], 1.0)), **fields)
    results += runs(make_result, "infvit", {0: (0.9, 1.0)}, variant="model.hops=3")
    comparison = Comparison.from_results(results)
    against = {r.name: (r.paired.baseline, r.paired.top1.mean) for r in comparison.rows if not r.is_baseline}
    assert against == {
        "infvit (depth=4)": ("vit (depth=4)", 0.0),
        "infvit (depth=24)": ("vit (depth=24)", pytest.approx(0.1)),
        "infvit backbone.std=0.02": ("vit backbone.std=0.02", pytest.approx(0.2)),
        "infvit model.hops=3": ("vit (depth=4)", pytest.approx(0.4)),
    }


def test_a_variant_is_paired_with_the_baselines_variant_also_where_a_row_has_the_name_of_the_baseline(
    make_result,
):
    variants = {"gamma=fixed": (0.9, 0.95), "gamma=fixed positions=std0.02": (0.5, 0.8)}
    results = []
    for variant, (vit, infvit) in variants.items():
        results += runs(make_result, "vit", {0: (vit, 1.0)}, variant=variant)
        results += runs(make_result, "infvit", {0: (infvit, 1.0)}, variant=variant)
    comparison = Comparison.from_results(results)
    assert points(row(comparison, "infvit")) == "+5.00 ± –"
    assert points(row(comparison, "infvit positions=std0.02")) == "+30.00 ± –"
    assert points(row(comparison, "vit positions=std0.02")) == "baseline"


def test_with_and_without_a_convolution_have_one_baseline_softmax_without(make_result):
    results = []
    for variant, more in (("", 0), ("locality=dwconv", 0.02)):
        for model, top1 in (("vit", 0.5), ("infvit", 0.6)):
            results += runs(make_result, model, {0: (top1 + more, 1.0)}, variant=variant)
    rows = {r.name: points(r) for r in Comparison.from_results(results).rows}
    without = {"vit": "baseline", "infvit": "+10.00 ± –"}
    assert rows == without | {"vit locality=dwconv": "+2.00 ± –", "infvit locality=dwconv": "+12.00 ± –"}


def test_the_baseline_can_be_named_by_model_or_row_and_must_exist(make_result):
    results = runs(make_result, "vit", VIT) + runs(make_result, "infvit", INFVIT)
    assert points(row(Comparison.from_results(results, baseline="infvit"), "vit")) == "−3.25 ± 2.72"
    with pytest.raises(UsageError, match="no row or model named swin to compare with; there are: infvit, vit"):
        Comparison.from_results(results, baseline="swin")
    without = Comparison.from_results(runs(make_result, "a", VIT) + runs(make_result, "b", VIT))
    assert remarks(without) == ["no finished run of vit compares with another row: no paired differences"]


def test_speeds_of_different_machines_are_not_divided(make_result):
    elsewhere = runs(make_result, "infvit", INFVIT, hardware={"gpu": "H100"})
    comparison = Comparison.from_results([*runs(make_result, "vit", VIT), *elsewhere])
    assert speed(row(comparison, "infvit")) == "–"
    assert points(row(comparison, "infvit")) == "+3.25 ± 2.72"


def test_one_pair_has_no_interval(make_result):
    one = Comparison.from_results([make_result("vit", top1=0.5), make_result("infvit", top1=0.4)])
    assert points(row(one, "infvit")) == "−10.00 ± –"
