"""A job is one folder, one W&B run, one result and the numbers of one process, whatever starts its processes."""

import csv
import json
import os
import socket
import subprocess
import sys
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from torch.distributed import PrefixStore, TCPStore

from infvit.errors import UsageError
from infvit.run import ranks

ROOT = Path(__file__).parents[2]
TINY = ["experiment=digits", "data/loader=torch", "size.depth=1", "size.dim=16", "recipe.warmup_epochs=0"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


def losses(folder: Path) -> list[float]:
    """Returns the loss of the global batch in every step."""
    rows = csv.DictReader((folder / "metrics.csv").open())
    return [float(row["train/loss_step"]) for row in rows if row["train/loss_step"]]


@pytest.mark.slow
def test_processes_of_torchrun_on_two_nodes_are_one_run(tmp_path, data_cache):
    # The second process alone would choose another folder.
    train = [ROOT / "train.py", *TINY, "model=vit", "recipe.epochs=1", "name=process${oc.env:RANK}"]
    train += ["trainer=ddp_cpu", "trainer.devices=1", "trainer.num_nodes=2"]
    with socket.create_server(("127.0.0.1", 0)) as free:
        where = ["--master_addr=127.0.0.1", f"--master_port={free.getsockname()[1]}", "--nnodes=2"]
    launcher = [sys.executable, "-m", "torch.distributed.run", *where, "--nproc_per_node=1"]
    environment = {**os.environ, "INFVIT_CACHE": str(data_cache), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    nodes = [subprocess.Popen([*launcher, f"--node_rank={node}", *train], text=True, **options) for node in range(2)]
    printed = "".join(node.communicate()[0] for node in nodes)
    assert not any(node.returncode for node in nodes), printed
    (left,) = tmp_path.glob("runs/*/*")
    assert left.parent.name == "process0"
    assert result(left)["status"] == "finished"
    assert result(left)["hardware"]["devices"] == 2
    assert len(list(left.glob("wandb/offline-run-*"))) == 1
    assert len(list(left.glob("**/config.yaml"))) == 1
    assert printed.count("finished: ") == 1


@pytest.mark.slow
def test_a_sweep_by_two_processes_is_one_sweep_and_each_job_one_run_with_the_losses_of_one_process(cli, two_processes):
    # In float64 and at a tenth of the learning rate: a dead head divides by the sum of its scores, 1e-5, and rounding
    # errors grow tenfold a step, from another order of the images in one process just as from a second process.
    exact = ["trainer.precision=64-true", "recipe.base_lr=16e-4"]
    sweep = ["-m", *TINY, *exact, "recipe.epochs=2", "trainer.log_every_n_steps=1", "seed=0"]
    sweep += ["model=infvit,linear_infvit"]
    folder, printed = two_processes(*sweep)
    (together,) = folder.glob("runs/*/*")
    runs = sorted(path.parent for path in together.glob("*/result.json"))
    assert [result(run)["status"] for run in runs] == ["finished", "finished"]
    assert [len(list(run.glob("wandb/offline-run-*"))) for run in runs] == [1, 1]
    assert len(list(together.glob("wandb/offline-run-*"))) == 1  # the comparison
    assert printed.count("sweep: 2 jobs") == printed.count("comparison: ") == 1
    assert printed.count("2 of 2 jobs") == 1
    assert cli("train", *sweep, "logger=csv").code == 0
    (alone,) = folder.parent.glob("runs/*/*")
    for run in runs:
        assert len(losses(run)) == 22
        assert losses(run) == pytest.approx(losses(alone / run.name), abs=1e-10, rel=0)
        assert result(run)["metrics"] == pytest.approx(result(alone / run.name)["metrics"])


def test_another_number_of_processes_than_devices_is_refused(cli, monkeypatch):
    alone = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "TORCHELASTIC_RUN_ID": "none"}
    for name, value in alone.items():
        monkeypatch.setenv(name, value)
    assert "are 2 processes, found 1" in cli("train", *TINY, "logger=csv", "trainer=ddp_cpu").error()


@pytest.fixture
def first_of_two(monkeypatch):
    """Makes this process rank zero of two that torchrun has started; returns torchrun's store."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # as torchrun has one
    names = ("RANK", "LOCAL_RANK", "GROUP_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "TORCHELASTIC_RUN_ID")
    more = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}
    for name, value in (dict.fromkeys(names, "0") | {"WORLD_SIZE": "2"} | more).items():
        monkeypatch.setenv(name, value)
    return store


@pytest.mark.slow
def test_rank_zero_that_does_not_come_is_one_line(cli, first_of_two, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(ranks, "TIMEOUT", timedelta(seconds=1))
    monkeypatch.setattr(ranks, "REPORT_TIMEOUT", timedelta(seconds=0.1))
    line = cli("train", *TINY, "logger=csv", "trainer=ddp_cpu").error()
    assert f"error: hydra.run.dir: rank 1 waited 1 s for rank 0 at 127.0.0.1:{first_of_two.port} (" in line


@pytest.mark.slow
def test_rank_zero_gives_its_value_to_all_and_may_do_so_later(first_of_two, monkeypatch):
    assert ranks.broadcast_from_rank_zero("folder of job 0", "runs/first") == "runs/first"
    monkeypatch.setenv("RANK", "1")
    assert ranks.broadcast_from_rank_zero("folder of job 0", "runs/second") == "runs/first"
    later = threading.Timer(2, lambda: PrefixStore("infvit/0", first_of_two).set("folder of job 1", "runs/third"))
    later.start()
    assert ranks.broadcast_from_rank_zero("folder of job 1", "runs/fourth") == "runs/third"


@pytest.mark.slow
@pytest.mark.parametrize("comes", [True, False])
def test_rank_zero_of_slurm_serves_the_store_until_all_have_read_it_and_names_a_rank_that_does_not(monkeypatch, comes):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    task = {
        "SLURM_NTASKS": "2",
        "SLURM_NTASKS_PER_NODE": "2",
        "SLURM_PROCID": "0",
        "SLURM_JOB_ID": "1",
        "SLURM_JOB_NAME": "train",
    }
    for name, value in (task | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(ranks, "TIMEOUT", timedelta(seconds=2))

    def other() -> None:
        store = PrefixStore("infvit/0", TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False))
        assert store.get("folder") == b"runs/first"
        store.set("folder of rank 1", "")

    if comes:
        asks = threading.Thread(target=other)
        asks.start()
        assert ranks.broadcast_from_rank_zero("folder", "runs/first") == "runs/first"
        asks.join()
    else:
        with pytest.raises(UsageError, match=f"^rank 1 did not come to 127.0.0.1:{port}: see what the other processes"):
            ranks.broadcast_from_rank_zero("folder", "runs/first")


@pytest.mark.usefixtures("first_of_two")
def test_a_line_that_rank_zero_reports_is_not_printed_again(monkeypatch):
    assert not ranks.rank_zero_reports("error", "too large")
    monkeypatch.setenv("RANK", "1")
    assert ranks.rank_zero_reports("error", "too large")
    assert not ranks.rank_zero_reports("error", "the disk of rank 1 is full")
    monkeypatch.setattr(ranks, "REPORT_TIMEOUT", timedelta(seconds=0.1))
    assert not ranks.rank_zero_reports("error of job 7", "the disk of rank 1 is full")
