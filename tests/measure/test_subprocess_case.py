"""run_isolated: its value, peak memory, statuses, and the end of its process."""

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
from infvit.measure.subprocess_case import DONE, FAILED, OUT_OF_MEMORY, TOO_SLOW, peak_memory, run_isolated

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def test_value_and_peak_memory_of_the_case(capfd):
    """A quarter of a gigabyte more must show as that much more; a case has as many threads as its parent."""
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        small, large = (run_isolated(partial(_sum_of_ones, n)) for n in (10, 2**26))
    finally:
        torch.set_num_threads(before)
    assert small.status == large.status == DONE
    assert (small.value[0], large.value[0]) == ((10, before + 1), (2**26, before + 1))
    assert 0.9 * 2**28 < large.value[1] - small.value[1] < 1.2 * 2**28
    assert "the sum of 10" in capfd.readouterr().err  # the outcome has a pipe of its own


def _sum_of_ones(n):
    print("the sum of", n)
    return (float(torch.ones(n).sum()), torch.get_num_threads()), peak_memory()


@pytest.mark.parametrize(
    ("work", "limits", "status", "note", "printed"),
    [
        (partial(torch.ones, 2**28), {"memory_limit": 2**30}, OUT_OF_MEMORY, "1.1 GB", ""),
        (partial(time.sleep, 600), {"time_limit": 3}, TOO_SLOW, "3 s", ""),
        (partial(open_image, "gone.png"), {}, FAILED, "gone.png does not exist", ""),
        (partial(int, "x"), {}, FAILED, "code 1", "invalid literal for int()"),
    ],
    ids=["memory limit", "time limit", "usage error", "raises"],
)
def test_status_and_note(capfd, work, limits, status, note, printed):
    outcome = run_isolated(work, **limits)
    assert outcome.status == status
    assert note in outcome.note
    assert printed in capfd.readouterr().err


def test_a_case_ends_with_its_parent():
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
