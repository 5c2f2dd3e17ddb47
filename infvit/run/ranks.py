"""Which rank this process is, and what all ranks take from rank zero before a process group exists."""

import functools
import os
from datetime import timedelta

from lightning.fabric.plugins.environments import ClusterEnvironment, SLURMEnvironment, TorchElasticEnvironment
from torch.distributed import PrefixStore, Store, TCPStore

from infvit.errors import UsageError

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others: W&B may still upload what rank zero's last job left."""

REPORT_TIMEOUT = timedelta(seconds=5)
"""How long a rank that fails waits for rank zero to fail with the same error."""

ADVICE = "see what the other processes print, and give the same command again"


def launcher() -> ClusterEnvironment | None:
    """Returns what started all processes of this job, torchrun or SLURM, in Lightning's order; None for Lightning."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    in_a_job_step = "SLURM_NTASKS" in os.environ and "SLURM_PROCID" in os.environ
    return SLURMEnvironment() if in_a_job_step and SLURMEnvironment.detect() else None


def is_global_zero() -> bool:
    """Whether this is rank zero, which writes the files of a run."""
    started_by = launcher()
    if started_by is not None:
        return started_by.global_rank() == 0
    return int(os.environ.get("LOCAL_RANK", "0")) == 0 and int(os.environ.get("NODE_RANK", "0")) == 0


def store_outlives_workers() -> bool:
    """Whether torchrun keeps the store in its own process, and not rank zero."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == str(True)


def timeout(seconds: float) -> timedelta:
    """Returns the timeout of a process group, for configs: a strategy takes no plain number."""
    return timedelta(seconds=seconds)


def broadcast_from_rank_zero(name: str, value: str) -> str:
    """Returns rank zero's `value` of `name`; every rank that torchrun or SLURM started must call this.

    Raises:
        UsageError: rank zero gave none, or another rank did not ask, within `TIMEOUT`.
    """
    started_by = launcher()
    if started_by is None or started_by.world_size() == 1:
        return value
    rank = started_by.global_rank()
    place = f"{started_by.main_address}:{started_by.main_port}"
    try:
        store = _store_of(started_by)
        if rank == 0:
            store.set(name, value)
        given = store.get(name).decode()
        if not store_outlives_workers():
            store.set(f"{name} of rank {rank}", "")
            if rank == 0:
                _wait_for_all(store, name, started_by.world_size(), place)
        return given
    except RuntimeError as error:  # torch's errors of stores
        waited = f"waited {TIMEOUT.total_seconds():.0f} s for rank 0" if rank else "cannot keep the store"
        raise UsageError(f"rank {rank} {waited} at {place} ({str(error).splitlines()[0]}): {ADVICE}") from error


def _wait_for_all(store: Store, name: str, world_size: int, place: str) -> None:
    """Waits until every rank has read `name`: the store ends with this process."""
    keys = {rank: f"{name} of rank {rank}" for rank in range(world_size)}
    try:
        store.wait(list(keys.values()))
    except RuntimeError as error:
        absent = " and ".join(f"rank {rank}" for rank, key in keys.items() if not store.check([key]))
        raise UsageError(f"{absent} did not come to {place}: {ADVICE}") from error


def rank_zero_reports(name: str, line: str) -> bool:
    """Whether rank zero fails with the same line, so that this rank need not print it again.

    Known under torchrun alone, whose store outlives the processes.
    """
    started_by = launcher()
    if started_by is None or started_by.world_size() == 1 or not store_outlives_workers():
        return False
    try:
        store = _store_of(started_by)
        if started_by.global_rank() == 0:
            store.set(name, line)
            return False
        store.wait([name], REPORT_TIMEOUT)
        return store.get(name).decode() == line
    except RuntimeError:  # torch's errors of stores
        return False


def _store_of(started_by: ClusterEnvironment) -> Store:
    return _cached_store(started_by.main_address, started_by.main_port, started_by.global_rank())


@functools.cache
def _cached_store(address: str, port: int, rank: int) -> Store:
    """As `open_store`, kept while the process lives, because Lightning's process group joins this server."""
    return open_store(address, port, rank, TIMEOUT)


def open_store(address: str, port: int, rank: int, timeout: timedelta) -> Store:
    """Returns the job's key-value store; rank zero serves it unless torchrun does.

    Raises:
        RuntimeError: nothing serves it within `timeout`.
    """
    serves = rank == 0 and not store_outlives_workers()
    store = TCPStore(address, port, is_master=serves, timeout=timeout, wait_for_workers=False, multi_tenant=True)
    # After a restart by torchrun the store still holds the keys of the attempt before.
    return PrefixStore(f"infvit/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)
