"""What paired differences decide, against SciPy's tests, published examples, and the formulas by hand."""

import numpy as np
import pytest
from scipy import stats

from infvit.compare import Comparison
from infvit.compare.__main__ import main
from infvit.compare.columns import table
from infvit.compare.notes import explanations, remarks
from infvit.compare.significance import holm, p_different, p_equivalent, seeds_needed
from infvit.errors import UsageError
from infvit.tables.interval import Estimate
from tests.compare.test_pairing import cell, row, runs

DIFFERENCES = [0.4, -1.1, 0.9, 0.2, 0.35]


def test_p_values_are_those_of_the_paired_t_test_and_of_two_one_sided_ones():
    seen = Estimate.of(DIFFERENCES)
    assert p_different(seen) == pytest.approx(stats.ttest_1samp(DIFFERENCES, 0).pvalue)
    for margin in (0.1, 1.0, 1.5):
        above = stats.ttest_1samp(DIFFERENCES, -margin, alternative="greater").pvalue
        below = stats.ttest_1samp(DIFFERENCES, margin, alternative="less").pvalue
        assert p_equivalent(seen, margin) == pytest.approx(max(above, below))
    # Equivalent at 5% is the same as a 90% interval within the margin.
    interval = stats.ttest_1samp(DIFFERENCES, 0).confidence_interval(0.90)
    edge = max(-interval.low, interval.high)
    assert p_equivalent(seen, edge) == pytest.approx(0.05)
    agreed = Estimate.of([0.5, 0.5, 0.5])
    assert (p_different(agreed), p_equivalent(agreed, 1.0), p_equivalent(agreed, 0.4)) == (0.0, 0.0, 1.0)
    assert p_different(Estimate.of([0.0, 0.0])) == 1.0


def test_holm_gives_the_textbook_example_and_is_never_below_what_it_corrects():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@pytest.mark.parametrize(("effect", "seeds"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5)])
def test_the_seeds_needed_are_those_of_published_tables(effect, seeds):
    """Paired t test, level 0.05 two-sided, power 0.8, as G*Power gives them."""
    spread = np.array([-1.0, 1.0]) / np.sqrt(2)  # of standard deviation 1
    assert seeds_needed(Estimate.of(spread), effect) == seeds
    assert seeds_needed(Estimate.of([0.3, 0.3]), effect) == 2


def test_a_table_says_what_differs_what_is_equal_and_what_its_seeds_do_not_decide(make_result, printed):
    noise = (0.000, 0.002, -0.001, 0.003)
    tops = {"vit": (0.9,) * 4, "better": [0.95 + x for x in noise], "equal": [0.901 + x for x in noise]}
    tops["open"] = [0.9 + 20 * x for x in noise]
    values = {model: {s: (x, 1.0) for s, x in enumerate(seeds)} for model, seeds in tops.items()}
    comparison = Comparison.from_results(run for model, v in values.items() for run in runs(make_result, model, v))
    differs, equals = (
        holm([test([100 * (x - 0.9) for x in tops[name]]) for name in ("better", "equal", "open")])
        for test in (
            lambda d: stats.ttest_1samp(d, 0).pvalue,
            lambda d: max(
                stats.ttest_1samp(d, -1, alternative="greater").pvalue,
                stats.ttest_1samp(d, 1, alternative="less").pvalue,
            ),
        )
    )
    expected = dict(zip(("better", "equal", "open"), zip(differs, equals, strict=True), strict=True))
    assert {name: pytest.approx(p) for name, p in comparison.decided.items()} == expected
    verdicts = {name: [p < 0.05 for p in found] for name, found in comparison.decided.items()}
    assert verdicts == {"better": [True, False], "equal": [False, True], "open": [False, False]}
    text = printed(comparison)
    needed = seeds_needed(row(comparison, "open").paired.top1, 0.01)
    assert "over the 3 differences" in text
    assert f"3 seeds in the median row, from 3 (better) to {needed} (open)" in text
    assert "level 0.05 two-sided and uncorrected, power 0.8" in text
    for column in table(comparison).shown("markdown"):
        if column.heading.endswith(", p"):
            assert column.cell(row(comparison, "vit")) == "–"
            assert column.cell(row(comparison, "open")) == f"{column.value(row(comparison, 'open')):.3f}"


def test_rows_without_a_seed_in_common_have_a_dash_and_its_reason(make_result):
    results = runs(make_result, "vit", {0: (0.9, 1.0), 1: (0.9, 1.0)}) + runs(make_result, "infvit", {2: (0.8, 1.0)})
    comparison = Comparison.from_results(results)
    assert cell(row(comparison, "infvit"), "Δ top-1") == "–"
    assert "infvit: no seed in common with vit" in remarks(comparison)
    assert comparison.decided == {}
    assert not [words for words in explanations(comparison) if "Holm" in words]


def test_the_top1_after_some_epochs_is_read_from_the_curves_of_longer_runs(make_result, printed):
    curves = [[{"epoch": e, "val/top1": top1 + e / 100} for e in range(12)] for top1 in (0.5, 0.7)]
    results = [make_result(seed=s, curves=curve) for s, curve in enumerate(curves)]
    results.append(make_result("infvit", epochs=8))
    comparison = Comparison.from_results(results)
    assert row(comparison, "vit").after(8).mean == pytest.approx(0.6 + 7 / 100)
    assert row(comparison, "infvit").after(8).n == 0
    assert "after 8 ep. %" in printed(comparison).lower()
    assert comparison.readings == [8]
    assert Comparison.from_results([make_result(epochs=5)]).readings == []


def test_the_commands_options_are_refused_in_one_line(make_result, make_sweep, tmp_path, capsys):
    sweep = make_sweep([make_result()])[0].parent
    for option, words in (
        (["--margin", "0"], "margin is 0, expected"),
        (["--curve-epochs", "0"], "curve_epochs has 0"),
    ):
        assert main([str(sweep), "--out", str(tmp_path), *option]) == 2
        error = capsys.readouterr().err
        assert words in error
        assert error.count("\n") == 1
    with pytest.raises(UsageError, match="margin is nan"):
        Comparison((), margin=float("nan"))
