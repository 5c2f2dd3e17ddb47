"""What was compared, in words: a sweep's jobs are told as the one command that ran them."""

from __future__ import annotations

import pytest

from infvit.compare import Comparison
from infvit.compare.provenance import commands, subject
from tests.compare.conftest import MakeResult


def jobs(*words: str) -> list[str]:
    return [f"python train.py {line}" for line in words]


@pytest.mark.parametrize(
    ("single", "together"),
    [
        (["x=1"], ["python train.py x=1"]),
        (["model=a seed=0", "model=a seed=1"], ["python train.py -m model=a seed=0,1"]),
        (
            ["model=a seed=0", "model=b seed=0", "model=a seed=1", "model=b seed=1"],
            ["python train.py -m model=a,b seed=0,1"],
        ),
        # Not all combinations: only the seeds may be told together.
        (
            ["model=a seed=0", "model=a seed=1", "model=b seed=0"],
            ["python train.py -m model=a seed=0,1", "python train.py model=b seed=0"],
        ),
        (["model=a seed=0", "seed=0 other=1"], ["python train.py model=a seed=0", "python train.py seed=0 other=1"]),
        (["'size={a: 1}' seed=0", "'size={a: 1}' seed=1"], ["python train.py -m 'size={a: 1}' seed=0,1"]),
    ],
)
def test_jobs_become_the_sweep_that_runs_them(single: list[str], together: list[str]) -> None:
    assert commands(jobs(*single)) == together


def test_empty_facts_are_left_out_and_the_most_common_come_first(make_result: MakeResult) -> None:
    results = [make_result(m, 0, hardware={"cpu": "x", "gpus": []}) for m in "abc"]
    results.append(make_result("d", 0, recipe="other"))
    facts = dict(subject(Comparison.from_results(results)))
    assert facts["Hardware"].splitlines()[0] == "cpu x"
    assert facts["Recipe"].splitlines()[0] == "digits (hash 34cd90ab12ef5678, 12 epochs)"
    assert len(facts["Recipe"].splitlines()) == 2
