"""The SLURM harness, where there is a SLURM."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.chaos import slurm

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.slow
@pytest.mark.skipif(bool(slurm.missing()), reason=f"no SLURM here: {slurm.missing()}")
def test_slurm_runs_a_sweep_with_jobs_of_two_tasks_and_one_that_is_requeued():
    command = [sys.executable, "-m", "tests.chaos", "slurm", "--sweep-alone"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all |  | 5 | 5 | 0 |" in done.stdout
