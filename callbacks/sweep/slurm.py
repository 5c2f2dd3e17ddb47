"""Sweeps on SLURM whose jobs request different resources, such as more devices for a larger model."""

import json
import subprocess
import time
from collections.abc import Sequence
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
from omegaconf import DictConfig, OmegaConf

POLL_INTERVAL = 10.0
"""Seconds between two queries of SLURM's queue."""

RESULT_DELAY = 60.0
"""Seconds until the result of a job that has left the queue is visible on a network disk."""


class GroupJobsByResources(Callback):
    """Makes Hydra's SLURM launcher request for each job what the job's own config has in `hydra.launcher`.

    By itself the launcher submits one array of jobs, with the resources of the sweep's command. Hydra imports launchers
    from the package hydra_plugins alone, so that a subclass cannot be here: its method `launch` is replaced.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        SlurmLauncher.launch = launch


def launch(self: SlurmLauncher, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
    """Submits an array of jobs for each distinct `hydra.launcher` of the jobs' configs, and waits for all of them."""
    import submitit  # takes a second, which runs without SLURM need not wait

    assert self.config is not None
    assert self.hydra_context is not None
    groups: dict[str, list[tuple[int, list[str]]]] = {}
    for number, overrides in enumerate(job_overrides, initial_job_idx):
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        launcher = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        groups.setdefault(json.dumps(launcher), []).append((number, list(overrides)))
    jobs: dict[int, Any] = {}
    for launcher, members in groups.items():
        settings = {name: value for name, value in json.loads(launcher).items() if name != "_target_"}
        executor = submitit.AutoExecutor(
            folder=settings.pop("submitit_folder"),
            cluster="slurm",
            slurm_max_num_timeout=settings.pop("max_num_timeout"),
        )
        general = set(OmegaConf.structured(BaseQueueConf))
        executor.update_parameters(**{k if k in general else f"slurm_{k}": v for k, v in settings.items()})
        state = Singleton.get_state()
        calls = [(words, "hydra.sweep.dir", number, f"job {number}", state) for number, words in members]
        submitted = executor.map_array(self, *zip(*calls, strict=True))
        jobs |= dict(zip([number for number, _ in members], submitted, strict=True))
    returned = wait_for(jobs)
    return [returned[number] for number in sorted(returned)]


def wait_for(jobs: dict[int, Any]) -> dict[int, JobReturn]:
    """What each job returned, once all have ended; a job that ended without a result is reported and returns None.

    submitit learns of such an end from SLURM's accounting, which not every cluster has, and would wait forever.
    """
    returned: dict[int, JobReturn] = {}
    absent_since: dict[int, float] = {}
    while True:
        queue = _queue()
        for number in jobs.keys() - returned.keys():
            job = jobs[number]
            if job.done():
                returned[number] = _result(number, job)
            elif queue is None or job.job_id in queue:
                absent_since.pop(number, None)
            elif time.monotonic() - absent_since.setdefault(number, time.monotonic()) > RESULT_DELAY:
                returned[number] = _no_result(number, job)
        if len(returned) == len(jobs):
            return returned
        time.sleep(POLL_INTERVAL)


def _result(number: int, job: Any) -> JobReturn:
    from submitit.core.utils import UncompletedJobError

    try:
        return job.results()[0]
    except UncompletedJobError:
        return _no_result(number, job)


def _no_result(number: int, job: Any) -> JobReturn:
    print(f"job {number} failed: SLURM's job {job.job_id} ended without a result; see {job.paths.stderr}", flush=True)
    return JobReturn(status=JobStatus.COMPLETED, _return_value=None)


def _queue() -> set[str] | None:
    """The ids of the user's jobs that wait or run; None if SLURM does not answer."""
    try:
        done = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return set(done.stdout.split())
