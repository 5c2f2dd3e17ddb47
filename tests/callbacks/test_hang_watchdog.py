"""Ranks that hang or die are named, in real processes; `tests.chaos.worker` breaks whole runs in more ways."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from callbacks.hang_watchdog import HangWatchdog
from infvit.errors import UsageError
from infvit.run.ranks import timeout

ROOT = Path(__file__).parents[2]
RANKS = 3
STARTUP, STEP = 12.0, 3.0

FAULTS = {
    "asleep in a step": (1, "hangs or has died in batch 5 of train"),
    "killed in a step": (2, "hangs or has died in batch 5 of train"),
    "an error of its own": (2, "ended with ValueError: broken"),
    "rank zero stopped": (0, "hangs or has died before the first batch"),  # the positions were in its store
    "does not come": (2, "did not come to 127.0.0.1:"),
}
"""The rank at fault, and what is reported of it."""


class Linear(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)

    def training_step(self, batch):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

    def train_dataloader(self):
        return DataLoader(torch.ones(8 * RANKS, 2))


class Break(Callback):
    """Makes this rank do what the fault says."""

    def __init__(self, fault: str) -> None:
        self.fault = fault

    def on_train_batch_start(self, *arguments):
        if arguments[3] == 4:
            if self.fault == "asleep in a step":
                time.sleep(1000)
            if self.fault == "killed in a step":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "rank zero stopped":
                os.kill(os.getpid(), signal.SIGSTOP)
            if self.fault == "an error of its own":
                raise ValueError("broken")


def run_rank(rank: int, fault: str, port: int, folder: Path) -> None:
    """Trains as one of the ranks of a launcher; its output goes to a file."""
    output = os.open(folder / f"{fault} {rank}.txt", os.O_CREAT | os.O_WRONLY)
    os.dup2(output, 1)
    os.dup2(output, 2)
    names = {"RANK": rank, "LOCAL_RANK": rank, "GROUP_RANK": 0, "WORLD_SIZE": RANKS, "LOCAL_WORLD_SIZE": RANKS}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in names.items()})
    at_fault = rank == FAULTS[fault][0]
    watchdog = HangWatchdog(STARTUP, STEP)
    trainer = Trainer(
        accelerator="cpu",
        devices=RANKS,
        strategy=DDPStrategy(timeout=timeout(STARTUP)),
        max_epochs=1,
        callbacks=[watchdog, *([Break(fault)] if at_fault else [])],
        default_root_dir=folder / fault,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    if at_fault and fault == "does not come":
        time.sleep(1000)
    watchdog.before_launch(trainer)
    try:
        trainer.fit(Linear())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def run_faults(folder: Path) -> None:
    """Runs all faults at once, each with forked ranks; writes process ids and exit codes by fault and rank."""
    torch.set_num_threads(1)
    started: dict[int, tuple[str, int]] = {}
    for fault in FAULTS:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        for rank in range(RANKS):
            pid = os.fork()
            if pid == 0:
                run_rank(rank, fault, port, folder)
                sys.exit(0)
            started[pid] = fault, rank
    ended: dict[str, dict[int, tuple[int, int]]] = {fault: {} for fault in FAULTS}
    until = time.monotonic() + 100
    while any(len(ranks) < RANKS for ranks in ended.values()) and time.monotonic() < until:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            fault, rank = started.pop(pid)
            ended[fault][rank] = pid, os.waitstatus_to_exitcode(status)
            if rank == FAULTS[fault][0] or len(ended[fault]) < RANKS - 1:
                continue
            for other, (broken, _) in started.items():  # of "does not come", no rank knows the process
                if broken == fault == "does not come":
                    os.kill(other, signal.SIGKILL)
        time.sleep(0.05)
    for pid in started:
        os.kill(pid, signal.SIGKILL)
    (folder / "ended.json").write_text(json.dumps(ended))


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Returns, by fault, each rank's (process id, exit code) and the lines that begin with "error: "."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.callbacks.test_hang_watchdog", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=150)
    found = json.loads((folder / "ended.json").read_text())
    printed = {path.stem: path.read_text() for path in folder.glob("*.txt")}
    return {
        fault: (
            {int(rank): tuple(pair) for rank, pair in ranks.items()},
            [printed[f"{fault} {r}"] for r in range(RANKS)],
        )
        for fault, ranks in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_rank_at_fault_is_named_once_and_all_ranks_end(ended, fault):
    ranks, printed = ended[fault]
    at_fault, what = FAULTS[fault]
    assert sorted(ranks) == [0, 1, 2], printed
    lines = [line for text in printed for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert lines[0].startswith(f"error: rank {at_fault} ")
    assert what in lines[0]
    assert lines[0].endswith(": all ranks stop; resume with the same command and resume=auto")
    if "did not come" not in what:
        assert int(re.search(r"\(process (\d+) on ", lines[0])[1]) == ranks[at_fault][0]
    assert [ranks[rank][1] for rank in ranks if rank != at_fault] == [2, 2]
    assert ranks[at_fault][1] != 0


@pytest.mark.slow
def test_a_stopped_rank_of_a_run_is_named_in_its_result_and_the_same_command_resumes():
    command = [sys.executable, "-m", "tests.chaos", "worker", "--launchers", "lightning", "--faults", "3"]
    command += ["--epochs", "1", "--step-timeout", "4"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all |  | 1 | 1 | 0 |" in done.stdout


@pytest.mark.parametrize("name", ["startup_timeout", "step_timeout"])
def test_a_timeout_of_no_seconds_is_refused(name):
    with pytest.raises(UsageError, match=f"callbacks.hang_watchdog.{name}=0: expected seconds above 0"):
        HangWatchdog(**{name: 0})


if __name__ == "__main__":
    run_faults(Path(sys.argv[1]))
