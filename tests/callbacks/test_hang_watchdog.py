"""Ranks that hang or die are named, in real processes; `tests.chaos.worker` breaks whole runs in more ways."""

import json
import multiprocessing
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
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader

from callbacks.hang_watchdog import HangWatchdog
from infvit.errors import UsageError
from infvit.run.ranks import timeout
from tests.data.digits_run import trainer

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
    run = trainer(
        devices=RANKS,
        strategy=DDPStrategy(timeout=timeout(STARTUP)),
        max_epochs=1,
        callbacks=[watchdog, *([Break(fault)] if at_fault else [])],
        default_root_dir=folder / fault,
        use_distributed_sampler=True,
    )
    if at_fault and fault == "does not come":
        time.sleep(1000)
    watchdog.before_launch(run)
    try:
        run.fit(Linear())
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        sys.exit(2)


def run_faults(folder: Path) -> None:
    """Runs all faults at once, each with forked ranks; writes each rank's process id and exit code by fault."""
    torch.set_num_threads(1)
    fork, started = multiprocessing.get_context("fork"), {}
    for fault in FAULTS:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        started[fault] = [fork.Process(target=run_rank, args=(rank, fault, port, folder)) for rank in range(RANKS)]
        for process in started[fault]:
            process.start()
    until = time.monotonic() + 100
    for fault, ranks in started.items():
        at_fault = ranks[FAULTS[fault][0]]
        for process in [*(process for process in ranks if process is not at_fault), at_fault]:
            if process is at_fault and fault == "does not come":  # no rank knows it
                process.kill()
            process.join(max(0, until - time.monotonic()))
    ended = {fault: [(process.pid, process.exitcode) for process in ranks] for fault, ranks in started.items()}
    (folder / "ended.json").write_text(json.dumps(ended))
    for process in (process for ranks in started.values() for process in ranks):
        process.kill()


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Returns, by fault, each rank's (process id, exit code), and what the ranks printed."""
    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "tests.callbacks.test_hang_watchdog", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, timeout=150)
    found = json.loads((folder / "ended.json").read_text())
    return {
        fault: (ranks, [(folder / f"{fault} {rank}.txt").read_text() for rank in range(RANKS)])
        for fault, ranks in found.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_the_rank_at_fault_is_named_once_and_all_ranks_end(ended, fault):
    ranks, printed = ended[fault]
    at_fault, what = FAULTS[fault]
    assert all(code is not None for _, code in ranks), printed
    lines = [line for text in printed for line in text.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, printed
    assert lines[0].startswith(f"error: rank {at_fault} ")
    assert what in lines[0]
    assert lines[0].endswith(": all ranks stop; resume with the same command and resume=auto")
    if "did not come" not in what:
        assert int(re.search(r"\(process (\d+) on ", lines[0])[1]) == ranks[at_fault][0]
    assert [code for rank, (_, code) in enumerate(ranks) if rank != at_fault] == [2, 2]
    assert ranks[at_fault][1] != 0


@pytest.mark.parametrize("name", ["startup_timeout", "step_timeout"])
def test_a_timeout_of_no_seconds_is_refused(name):
    with pytest.raises(UsageError, match=f"callbacks.hang_watchdog.{name}=0: expected seconds above 0"):
        HangWatchdog(**{name: 0})


if __name__ == "__main__":
    run_faults(Path(sys.argv[1]))
