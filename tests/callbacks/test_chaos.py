"""Slices of `python -m tests.chaos`: runs that are broken on purpose lose nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

SLICES = {
    "kill --times 1 --writing 0": 3,
    "disk --only end": 1,
    "worker --launchers lightning --faults 1 --epochs 1 --startup-timeout 90": 1,
}
"""The harness with its options, and the number of its faults."""


@pytest.mark.parametrize("words", SLICES)
def test_every_fault_is_survived(words):
    command = [sys.executable, "-m", "tests.chaos", *words.split()]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    if ": skipped: " in done.stdout:  # needs a small file system
        pytest.skip(done.stdout.splitlines()[0])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"| all |  | {SLICES[words]} | {SLICES[words]} | 0 |" in done.stdout
