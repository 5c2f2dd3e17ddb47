"""Which of a job's processes is this one, and what do all take from the first, before Lightning lets them talk."""

import functools
import os
import time
from datetime import timedelta

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.distributed import PrefixStore, Store, TCPStore
from torch.distributed.rendezvous import rendezvous

from callbacks.effort import TICKS
from callbacks.hangs import started
from infvit.errors import UsageError

ARRIVAL = 100.0
"""Seconds that a process has, when another one is ready, to be so too; W&B may take 90 of them to start a run."""

BETWEEN_JOBS = timedelta(minutes=30)
"""How long the others wait for the first process when it was there once: W&B may upload what a job left."""

SECONDS = timedelta(seconds=5)
"""How long another process that fails waits for the first one to do so."""

ADVICE = "see what the other processes say, and give the same command again"


def launcher() -> ClusterEnvironment | None:
    """What started all processes of this job, torchrun or SLURM, asked in Lightning's order; None for Lightning."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    in_a_job_step = "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ
    return SLURMEnvironment() if in_a_job_step and SLURMEnvironment.detect() else None


def is_global_zero() -> bool:
    """Whether this process writes what a job leaves once."""
    started_by = launcher()
    if started_by is not None:
        return started_by.global_rank() == 0
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def broadcast_from_rank_zero(name: str, value: str) -> str:
    """The `value` that the job's first process gives for `name`; all processes of a launcher must ask.

    Raises:
        UsageError: the first process gave none in the time that it has.
    """
    started_by = launcher()
    if started_by is None or started_by.world_size() == 1:
        return value
    rank, place = started_by.global_rank(), f"{started_by.main_address}:{started_by.main_port}"
    since = time.monotonic()
    try:
        store = _store_of(started_by)
        if rank == 0:
            store.set(name, value)
        given = store.get(name).decode()
        if not store_outlives_workers():
            store.set(f"{name} of rank {rank}", "")
            if rank == 0:
                _all_have(store, name, started_by.world_size(), place)
        store.set_timeout(BETWEEN_JOBS)
        return given
    except RuntimeError as error:  # torch's errors of stores
        waited = f"waited {time.monotonic() - since:.0f} s in vain for rank 0" if rank else "cannot keep the store"
        raise UsageError(f"rank {rank} {waited} at {place} ({str(error).splitlines()[0]}): {ADVICE}") from error


def _all_have(store: Store, name: str, world_size: int, place: str) -> None:
    """Waits until all have `name`: the store ends with this process."""
    keys = {rank: f"{name} of rank {rank}" for rank in range(world_size)}
    try:
        store.wait(list(keys.values()))
    except RuntimeError as error:
        absent = " and ".join(f"rank {rank}" for rank, key in keys.items() if not store.check([key]))
        raise UsageError(f"{absent} did not come to {place}: {ADVICE}") from error


def arrival(own: float) -> float:
    """How long to wait for another process, in seconds, by how long this one took: the disk may be slow to both."""
    return max(ARRIVAL, 5 * own)


def store_outlives_workers() -> bool:
    """Whether the store by which the processes find each other is in torchrun, and outlives them."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def attempt() -> str:
    """Which start of the job by torchrun this is, from 0."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")


def rank_zero_reports(name: str, line: str) -> bool:
    """Whether the first process fails with the same line, which then need not be printed again by this one.

    Known under torchrun alone, whose store outlives the processes; of a line that only this one has it knows so when
    the first has failed with another, or has not within `SECONDS`.
    """
    started_by = launcher()
    if started_by is None or started_by.world_size() == 1 or not store_outlives_workers():
        return False
    try:
        store = _store_of(started_by)
        if started_by.global_rank() == 0:
            store.set(name, line)
            return False
        store.wait([name], SECONDS)
        return store.get(name).decode() == line
    except RuntimeError:  # torch's errors of stores
        return False


def _store_of(started_by: ClusterEnvironment) -> Store:
    return _store(started_by.main_address, started_by.main_port, started_by.global_rank(), started_by.world_size())


@functools.cache
def _store(address: str, port: int, rank: int, world_size: int) -> Store:
    """Kept while the process lives: Lightning's process group finds the port served, by this store, and joins it."""
    age = _age()
    timeout = timedelta(seconds=arrival(age) - age)  # what started them did so at one time
    found: Store
    if store_outlives_workers():
        found, _, _ = next(rendezvous(f"tcp://{address}:{port}?rank={rank}&world_size={world_size}", timeout=timeout))
    else:
        found = TCPStore(address, port, world_size, rank == 0, timeout, wait_for_workers=False, multi_tenant=True)
    # A restart by torchrun finds what the attempt before left.
    return PrefixStore(f"infvit/{attempt()}", found)


def _age() -> float:
    """Seconds since this process started, where the system tells."""
    since = started(os.getpid())
    return time.clock_gettime(time.CLOCK_BOOTTIME) - int(since) / TICKS if since else 0.0
