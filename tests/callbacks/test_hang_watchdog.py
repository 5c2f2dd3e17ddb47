"""Ranks that hang or die are named; `tests.chaos.worker` breaks more runs in more ways."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_stopped_rank_is_named_and_ended_and_the_same_command_resumes():
    command = [sys.executable, "-m", "tests.chaos", "worker", "--launchers", "lightning", "--faults", "3"]
    command += ["--epochs", "1", "--step-timeout", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all |  | 1 | 1 | 0 |" in done.stdout
