"""A real SLURM of one node: a sweep by sbatch, one job stopped by a signal and requeued, others of two tasks with DDP.

munged, slurmctld and slurmd run with their own configuration, ports and key in a temporary folder, and end with the
harness. On Debian: apt-get install slurm-wlm munge.
"""

import argparse
import contextlib
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from infvit.run.checkpoint import newest_first
from tests.chaos import Fault
from tests.chaos.worker import marked, setting

ROOT = Path(__file__).parents[2]
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "scancel", "scontrol", "squeue", "sinfo")
SECONDS = 240
"""Limit for every wait, generous for a busy machine."""

EPOCHS = 30
SWEEP = [
    "-m",
    "experiment=digits",
    "data/loader=torch",
    "model=vit",
    "trainer=ddp_cpu",
    "trainer.devices=${size.depth}",
    "size.dim=16",
    f"recipe.epochs={EPOCHS}",
    "hydra/launcher=slurm",
    "hydra.launcher.timeout_min=10",
    "checkpoint.every_minutes=0.005",
    "callbacks.attention_maps=null",
]

CONFIGURATION = """
ClusterName=chaos
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
# A requeued job waits until the credential of its first start expires, by default 2 minutes.
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=4
PartitionName=all Nodes={host} Default=YES
"""


def missing() -> str | None:
    """Why SLURM cannot run here; None if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"{', '.join(absent)} not found: apt-get install slurm-wlm munge"
    return None if os.geteuid() == 0 else "SLURM's daemons need root here"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sweep-alone", action="store_true", help="without the task that is stopped, two minutes less")


def run(options: argparse.Namespace) -> Iterator[Fault]:
    reason = missing()
    if reason:
        print(f"slurm: skipped: {reason}", flush=True)
        return
    with tempfile.TemporaryDirectory() as name, cluster(Path(name)) as environment:
        folder = Path(name, "work")
        folder.mkdir()
        sweep = folder / "runs" / "digits" / "digits_sweep"

        def one(seed: int, depth: int) -> Path | None:
            """The folder of one job."""
            found = [path.parents[1] for path in sweep.glob(f"*_seed{seed}_*/.hydra/overrides.yaml")]
            return next((run for run in found if f"size.depth={depth}" in _overrides(run)), None)

        def first_checkpoint() -> bool:
            return (run := one(0, 1)) is not None and bool(newest_first(run / "checkpoints"))

        output = folder / "output.txt"

        def start(*words: str) -> subprocess.Popen:
            command = [sys.executable, ROOT / "train.py", *SWEEP, *words]
            with output.open("w") as file:
                return subprocess.Popen(command, cwd=folder, env=environment, stdout=file, stderr=file)

        submitted = start("seed=0", "size.depth=1,2")
        try:
            _until(first_checkpoint, submitted, output)
            queue = [line.split() for line in _output(["squeue", "-h", "-r", "-o", "%i %C"], environment).splitlines()]
            (stopped,) = [job for job, tasks in queue if tasks == "1"]
            subprocess.run(["scancel", "--signal=USR2", stopped], env=environment, check=True)
            code = _ended(submitted, output)
        finally:
            submitted.kill()
        log = "".join(path.read_text() for path in sweep.glob(f".submitit/{stopped}/*.out"))
        requeued = "SIGUSR2 after step " in log and "resumes after step " in log
        yield Fault(
            "a signalled job is requeued and resumes", _lost(one(0, 1), 1) or (None if requeued else "its place")
        )
        yield Fault("a job of two tasks in the same sweep is one run", _lost(one(0, 2), 2))
        compared = output.read_text().count("comparison: ")
        lost = f"exit code {code}, {compared} of it" if code != 0 or compared != 1 else None
        yield Fault("the sweep ends with its comparison", lost)
        if options.sweep_alone:
            return
        submitted = start("seed=2", "size.depth=2", "callbacks.hang_watchdog.step_timeout=5")
        try:
            _until(lambda: (run := one(2, 2)) and newest_first(run / "checkpoints"), submitted, output)
            task = next(pid for pid in marked(environment["CHAOS"]) if _task_of_slurm(pid) == 1)
            os.kill(task, signal.SIGSTOP)
            code = _ended(submitted, output)
        finally:
            submitted.kill()
        yield Fault("a job with a task that is stopped names it and ends", _not_named(one(2, 2), 1, code, environment))


def _task_of_slurm(pid: int) -> int | None:
    """The rank of a process of a SLURM job; None for processes that SLURM did not start, and for its own."""
    number = setting(pid, "SLURM_PROCID")
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return int(number) if number is not None and b"submitit.core._submit" in command else None


def _not_named(run: Path | None, rank: int, code: int | None, environment: dict[str, str]) -> str | None:
    """What is missing where a job's task hangs: its name in result.json, an error, an empty queue."""
    if run is None:
        return "its folder"
    result = json.loads((run / "result.json").read_text())
    if result["status"] != "failed" or not str(result["error"]).startswith(f"rank {rank} (process "):
        return f"its name: {result['status']} {result['error']}"
    left = [pid for pid in marked(environment["CHAOS"]) if _task_of_slurm(pid) is not None]
    return f"exit code {code}, left are {_squeue(environment)} {left}" if left or not code else None


def _overrides(run: Path) -> str:
    return (run / ".hydra" / "overrides.yaml").read_text()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Starts SLURM in `folder`; yields the environment for its commands."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    key, settings = folder / "munge.key", folder / "slurm.conf"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    settings.write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder, ports=_free_ports(2)))
    environment = {**os.environ, "SLURM_CONF": str(settings), "PATH": _path(), "WANDB_MODE": "offline"}
    environment |= {"INFVIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "CHAOS": uuid.uuid4().hex}
    munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.socket"]
    munge += [f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"]
    commands = [munge, ["slurmctld", "-D", "-i", "-f", str(settings)], ["slurmd", "-D", "-f", str(settings)]]
    with contextlib.ExitStack() as running:
        for command in commands:
            with (folder / f"{command[0]}.txt").open("w") as output:
                daemon = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            running.callback(_stop, daemon)
            _until((folder / "munge.socket").exists, daemon, Path(output.name))
        _until(lambda: "idle" in _output(["sinfo", "-h", "-o", "%T"], environment), daemon, Path(output.name))
        running.callback(_cancel_all, environment)
        yield environment


def _cancel_all(environment: dict[str, str]) -> None:
    subprocess.run(["scancel", "--state=PENDING,RUNNING", *_squeue(environment)], env=environment, capture_output=True)
    until = time.monotonic() + 30
    while _squeue(environment) and time.monotonic() < until:
        time.sleep(0.2)


def _stop(daemon: subprocess.Popen) -> None:
    daemon.terminate()
    try:
        daemon.wait(20)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


def _squeue(environment: dict[str, str]) -> list[str]:
    """The ids of all jobs that are not done, each of an array by itself."""
    return _output(["squeue", "-h", "-r", "-o", "%i"], environment).split()


def _output(command: list[str], environment: dict[str, str]) -> str:
    return subprocess.run(command, env=environment, capture_output=True, text=True).stdout


def _until(true: Callable[[], object], process: subprocess.Popen, output: Path) -> None:
    """Waits until it is true, while the process runs; the error has its output."""
    until = time.monotonic() + SECONDS
    while not true():
        if process.poll() is not None or time.monotonic() > until:
            raise RuntimeError(f"ended too early or took too long, status {process.returncode}: {output.read_text()}")
        time.sleep(0.05)


def _ended(process: subprocess.Popen, output: Path) -> int | None:
    """The exit code; None, after printing its output, if it does not end in time."""
    try:
        return process.wait(SECONDS)
    except subprocess.TimeoutExpired:
        print(output.read_text(), flush=True)
        return None


def _lost(run: Path | None, devices: int) -> str | None:
    """What a run should have left but has not."""
    if run is None or not (run / "result.json").is_file():
        return "its folder"
    result = json.loads((run / "result.json").read_text())
    if result["status"] != "finished" or [point["epoch"] for point in result["curves"]] != list(range(EPOCHS)):
        return f"its end: {result['status']} {result['error']}"
    if result["hardware"]["devices"] != devices:
        return f"its tasks, found {result['hardware']['devices']}"
    names = {path.name.rpartition("-")[2] for path in run.glob("wandb/offline-run-*")}
    return None if len(names) == 1 else f"its one W&B run, found {len(names)}"


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as held:
        sockets = [held.enter_context(socket.create_server(("127.0.0.1", 0))) for _ in range(count)]
        return [one.getsockname()[1] for one in sockets]


def _path() -> str:
    """PATH with the folder in which Debian installs daemons."""
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
