"""A case in a process of its own: what it returns, and how it ends when it cannot."""

import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

from infvit.highres import open_image
from infvit.measure.subprocess_case import DONE, FAILED, OUT_OF_MEMORY, TOO_SLOW, run_isolated

ROOT = Path(__file__).parents[2]


def test_the_value_comes_back_and_the_peak_is_that_of_the_case():
    """A quarter of a gigabyte more must show as that much more."""
    small, large = run_isolated(partial(torch.ones, 10)), run_isolated(partial(_sum_of_ones, 2**26))
    assert small.status == large.status == DONE
    assert torch.equal(small.value, torch.ones(10))
    assert large.value == 2**26
    assert 0.9 * 2**28 < large.peak - small.peak < 1.2 * 2**28


def _sum_of_ones(n):
    return float(torch.ones(n).sum())


def test_too_much_memory_and_too_much_time_are_results():
    assert run_isolated(partial(torch.ones, 2**40)).status == OUT_OF_MEMORY
    assert run_isolated(partial(torch.ones, 2**28), memory_limit=2**30).status == OUT_OF_MEMORY
    slow = run_isolated(partial(time.sleep, 600), time_limit=3)
    assert slow.status == TOO_SLOW
    assert "3 s" in slow.note


def test_what_a_case_prints_does_not_disturb_its_answer(capfd):
    assert run_isolated(partial(print, "hello")).status == DONE
    assert "hello" in capfd.readouterr().err


def test_a_mistake_of_use_is_a_failed_case_with_its_line():
    outcome = run_isolated(partial(open_image, "gone.png"))
    assert outcome.status == FAILED
    assert "gone.png does not exist" in outcome.note


def test_a_case_that_raises_is_failed_and_shows_its_traceback(capfd):
    assert run_isolated(partial(int, "x")).status == FAILED
    assert "invalid literal for int()" in capfd.readouterr().err


def test_a_case_ends_with_the_process_that_started_it():
    waits = "import sys, time; print('begun', file=sys.stderr, flush=True); time.sleep(600)"
    calls = "from functools import partial; from infvit.measure.subprocess_case import run_isolated; "
    calls += f"run_isolated(partial(exec, {waits!r}))"
    caller = subprocess.Popen([sys.executable, "-c", calls], cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert caller.stderr.readline() == "begun\n"
    (case,) = map(int, Path(f"/proc/{caller.pid}/task/{caller.pid}/children").read_text().split())
    caller.terminate()
    try:
        caller.communicate(timeout=60)  # both hold the pipe
    except subprocess.TimeoutExpired:
        os.kill(case, signal.SIGKILL)
        raise


@pytest.mark.parametrize("threads", [1, 2])
def test_it_computes_with_as_many_threads_as_this_process(threads):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert run_isolated(torch.get_num_threads).value == threads
    finally:
        torch.set_num_threads(before)
