"""Every combination of conf/ is built or refused in one line, and so is every mistake on a command line."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.cli.broken_overrides import TRAIN, outcome, tried
from tests.cli.config_grid import NAMED, chosen_by_default, options, some_images, verdict, words

EVERY = list(HealthCheck)
SLICE = settings(max_examples=8, derandomize=True, deadline=None, database=None, suppress_health_check=EVERY)
MISTAKES = 30
"""`python -m tests.cli.broken_overrides --count N --seed M` tries more of them."""


@pytest.fixture(scope="module")
def places():
    with some_images() as found:
        yield found


def choices():
    """Of the groups that every run has one option each, of the others some or none."""
    groups = options()
    always = {name: st.sampled_from(groups[name]) for name in NAMED}
    perhaps = {name: st.sampled_from(found) for name, found in groups.items() if name not in NAMED}
    return st.fixed_dictionaries(always, optional=perhaps)


def test_the_groups_are_those_of_conf():
    assert set(NAMED) <= chosen_by_default() <= set(options())
    assert {"gamma", "positions", "progressive", "scale"} <= set(options()) - chosen_by_default()


@SLICE
@given(choices())
def test_what_is_chosen_is_made_or_refused_in_one_line(places, chosen):
    got = verdict(chosen, *places)
    assert got.bug is None, words(chosen)
    assert all("\n" not in line for _, line in got.refused)


@pytest.mark.slow
def test_each_mistake_is_one_line_and_exit_code_2(tmp_path, monkeypatch, data_cache):
    monkeypatch.setenv("INFVIT_CACHE", str(data_cache))
    monkeypatch.setenv("WANDB_MODE", "offline")
    refused, accepted = [], []

    def look(_kinds, overrides):
        if len(refused) == MISTAKES:
            return
        got = outcome("train", overrides, tmp_path / "trial", seconds=10)
        assert got.wrong is None, (overrides[len(TRAIN) :], got.code, got.err[-2000:])
        (refused if got.code == 2 else accepted).append(overrides)
        if got.code == 2:
            check_results(tmp_path / "trial")

    tried("train", TRAIN, 2 * MISTAKES, 0, look)
    assert len(refused) == MISTAKES


def check_results(folder):
    """A refused command leaves no result.json, or one whose status is failed."""
    for path in folder.rglob("result.json"):
        assert json.loads(path.read_text())["status"] == "failed"
