"""Which of a job's processes is this one, and what do all take from the first, before Lightning lets them talk."""

import functools
import os
from datetime import timedelta

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.distributed import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from infvit.errors import UsageError

PATIENCE = timedelta(minutes=5)
"""How long the others wait for the first process: it may still be importing from a slow disk."""

ARRIVAL = 110.0
"""Seconds that a process has, all of them running, to be ready to train; W&B may take 90 of them to start a run."""

SECONDS = timedelta(seconds=5)
"""How long another process that fails waits for the first one to do so."""


def launcher() -> ClusterEnvironment | None:
    """What started all processes of this job, torchrun or SLURM, asked in Lightning's order; None for Lightning."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    in_a_job_step = "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ
    return SLURMEnvironment() if in_a_job_step and SLURMEnvironment.detect() else None


def is_first() -> bool:
    """Whether this process writes what a job leaves once."""
    started_by = launcher()
    if started_by is not None:
        return started_by.global_rank() == 0
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def of_the_first(name: str, value: str) -> str:
    """The `value` that the job's first process gives for `name`; all processes of a launcher must ask.

    Raises:
        UsageError: the first process gave none within `PATIENCE`, or not all came to ask.
    """
    started_by = launcher()
    if started_by is None or started_by.world_size() == 1:
        return value
    place, rank = (started_by.main_address, started_by.main_port), started_by.global_rank()
    try:
        store = _store(*place, rank, started_by.world_size())
        if rank == 0:
            store.set(name, value)
        return store.get(name).decode()
    except RuntimeError as error:  # torch's errors of stores
        others = f"the other {started_by.world_size() - 1} processes" if rank == 0 else "rank 0"
        seconds = PATIENCE.total_seconds()
        raise UsageError(
            f"rank {rank} waited {seconds:.0f} s in vain for {others} at {place[0]}:{place[1]} "
            f"({str(error).splitlines()[0]}): see what they say, and give the same command again"
        ) from error


def agent_keeps_store() -> bool:
    """Whether the store by which the processes find each other is in torchrun, and outlives them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def attempt() -> str:
    """Which start of the job by torchrun this is, from 0."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def told_by_the_first(name: str, line: str) -> bool:
    """Whether the first process fails with the same line, which then need not be printed again by this one.

    Known under torchrun alone, whose store outlives the processes; of a line that only this one has it knows so when
    the first has failed with another, or has not within `SECONDS`.
    """
    started_by = launcher()
    if started_by is None or started_by.world_size() == 1 or not agent_keeps_store():
        return False
    try:
        store = _store(started_by.main_address, started_by.main_port, started_by.global_rank(), started_by.world_size())
        if started_by.global_rank() == 0:
            store.set(name, line)
            return False
        store.wait([name], SECONDS)
        return store.get(name).decode() == line
    except RuntimeError:  # torch's errors of stores
        return False


@functools.cache
def _store(address: str, port: int, rank: int, world_size: int) -> Store:
    """Kept while the process lives: Lightning's process group finds the port served, by this store, and joins it."""
    found = rendezvous(f"tcp://{address}:{port}?rank={rank}&world_size={world_size}", timeout=PATIENCE)
    store, *_ = next(found)
    # A restart by torchrun finds what the attempt before left.
    return PrefixStore(f"infvit/{attempt()}", store)
