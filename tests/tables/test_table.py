"""Columns declared once are printed in every format; numbers, intervals and names are printed as they are."""

from dataclasses import dataclass

import numpy as np
import pytest
from scipy import stats

from infvit.tables import escape
from infvit.tables.interval import Estimate
from infvit.tables.numbers import amount, duration, in_range, plus_minus, rate, ratio, signed, three_digits
from infvit.tables.table import Column, Table, to_csv


@dataclass
class Model:
    name: str
    top1: Estimate | str
    speed: float | None = None


COLUMNS: list[Column[Model]] = [
    Column("model", lambda model: model.name, key="name", left=True),
    Column("top-1 %", lambda model: model.top1, plus_minus, "top1"),
    Column("speed", lambda model: model.speed, three_digits, "speed", priority=1),
    Column("energy", lambda _: None, key="joules", optional=True),
]
MODELS = [Model("vit", Estimate(2, 0.9, 0.01), 1234.5), Model("a|b", Estimate(1, 0.8))]


def test_one_declaration_prints_in_every_format_and_an_empty_optional_column_in_none():
    table = Table(COLUMNS, MODELS, "Models")
    assert table.text().splitlines() == [
        "Models",
        "model       top-1 %  speed",
        "──────────────────────────",
        "vit    90.00 ± 1.00  1,234",
        "a|b       80.00 ± –      –",
    ]
    assert table.markdown().splitlines() == [
        "Models",
        "",
        "| model | top-1 % | speed |",
        "|---|---:|---:|",
        "| vit | 90.00 ± 1.00 | 1,234 |",
        r"| a\|b | 80.00 ± – | – |",
    ]
    assert r"vit & 90.00 $\pm$ 1.00 & 1,234 \\" in table.latex().splitlines()
    header, first, second = to_csv(table.records()).splitlines()
    assert header == "name,top1,top1_ci95_half_width,top1_n,speed"
    assert (first, second) == ("vit,0.9,0.01,2,1234.5", "a|b,0.8,,1,")


def test_a_narrow_terminal_loses_columns_then_spaces_then_the_end_of_names():
    models = [Model("a" * 30, Estimate(2, 0.9, 0.01), 1234.5)]
    assert Table(COLUMNS, models).text(46).splitlines()[2] == "a" * 24 + "…" + "  90.00 ± 1.00  1,234"
    assert Table(COLUMNS, models).text(35).splitlines()[2] == "a" * 20 + "…" + "  90.00 ± 1.00"
    assert Table(COLUMNS, models).text(25).splitlines()[2] == "a" * 12 + "…" + "  90.00±1.00"


def test_headings_of_rows_reach_over_all_columns_and_cells_may_have_several_lines():
    models = [Model("a heading longer than the column", ""), Model("  vit", "90.00\n88.00–92.00")]
    assert Table(COLUMNS[:2], models).text().splitlines()[2:] == [
        "a heading longer than the column",
        "  vit        90.00",
        "       88.00–92.00",
    ]


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        *((amount(x), text) for x, text in [(None, "–"), (0, "0"), (999, "999"), (1049, "1.05k"), (999_600, "1.00M")]),
        *((amount(x), text) for x, text in [(53_451_752, "53.5M"), (4.2e12, "4.20T")]),
        *((duration(x), text) for x, text in [(None, "–"), (3.24, "3.2 s"), (59.4, "59 s"), (59.7, "1 min 00 s")]),
        *((duration(x), text) for x, text in [(192, "3 min 12 s"), (7499, "2 h 05 min")]),
        *((three_digits(x), text) for x, text in [(0.1234, "0.123"), (9.994, "9.99"), (99.96, "100"), (1e4, "10,000")]),
        (plus_minus(Estimate(3, 0.9342, 0.0126)), "93.42 ± 1.26"),
        (plus_minus(Estimate()), "–"),
        (plus_minus(Estimate(1, 0.25), "{:.3f}".format), "0.250 ± –"),
        (rate(Estimate(2, 1834.4, 12.0)), "1,834 ± 12"),
        (rate(Estimate(2, 17.19, 0.5)), "17.2 ± 0.5"),
        (in_range(1.157, 1.1, 1.224, ratio, "x"), "1.16x (1.10 – 1.22)"),
        (in_range(2e5, 1e-3, 1e12, ratio), "2e+05 (1e-03 – 1e+12)"),
        (signed(-0.4), "−0.40"),
    ],
)
def test_numbers(shown, expected):
    assert shown == expected


def test_every_special_character_is_escaped():
    assert escape.latex("\\{}$&#%_^~") == r"\textbackslash{}\{\}\$\&\#\%\_\textasciicircum{}\textasciitilde{}"
    assert escape.latex("é中\n\t±−–") == r"e?  $\pm$$-$\textendash{}"
    assert "--" not in escape.latex("a---b")
    assert escape.latex("a_b/c", breakable=True) == r"a\_\allowbreak{}b/\allowbreak{}c"
    assert escape.markdown("<a>|`*\\\nb") == r"&lt;a&gt;\|\`\*\\; b"
    assert escape.printable("a\x1b[2J\r") == "a [2J "


@pytest.mark.parametrize("values", [[0.9, 0.94], [0.9, 0.94, 0.91], [0.5, 0.51, 0.7, 0.66, 0.58]])
def test_the_interval_is_students_t(values):
    estimate = Estimate.of(values)
    low, high = stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))
    assert estimate.n == len(values)
    assert estimate.mean == pytest.approx(np.mean(values), abs=1e-12)
    assert (estimate.low, estimate.high) == (pytest.approx(low, abs=1e-12), pytest.approx(high, abs=1e-12))


def test_one_seed_has_no_interval_and_no_seed_no_mean():
    assert Estimate.of([0.9, None]) == Estimate(1, 0.9, None)
    assert Estimate.of([None, float("nan")]) == Estimate(0, None, None)
