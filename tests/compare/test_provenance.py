"""What was compared, in words."""

from __future__ import annotations

from infvit.compare import Comparison
from infvit.compare.provenance import provenance
from tests.compare.conftest import MakeResult


def test_empty_facts_are_left_out_and_the_most_common_come_first(make_result: MakeResult) -> None:
    results = [make_result(m, 0, hardware={"cpu": "x", "gpus": []}) for m in "abc"]
    results.append(make_result("d", 0, recipe="other"))
    facts = dict(provenance(Comparison.from_results(results)))
    assert facts["Hardware"].splitlines()[0] == "cpu x"
    assert facts["Recipe"].splitlines() == [
        "digits (hash 34cd90ab12ef5678, 12 epochs)",
        "other (hash 34cd90ab12ef5678, 12 epochs)",
    ]


def test_jobs_of_a_sweep_have_its_command_and_single_runs_their_own(make_result: MakeResult) -> None:
    sweep = "python train.py -m model=vit,infvit seed=0,1"
    jobs = [make_result(m, s, command=f"python train.py model={m} seed={s}") for m in ("vit", "infvit") for s in (0, 1)]
    for job in jobs:
        job.sweep_command = sweep
    single = make_result("vit", 7, command="python train.py model=vit seed=7")
    facts = dict(provenance(Comparison.from_results([single, *jobs])))
    assert facts["Command"].splitlines() == [sweep, "python train.py model=vit seed=7"]
