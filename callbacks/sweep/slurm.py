"""Sweeps on SLURM whose jobs ask for different things, such as more devices for a larger model."""

import json
import subprocess
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

LOOKS = 10.0
"""Seconds between two looks at SLURM's queue."""

LAG = 60.0
"""Seconds in which a job's result appears on a network's disk when the job has left the queue."""

if TYPE_CHECKING:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher


class GroupJobsByResources(Callback):
    """Lets Hydra's launcher for SLURM ask what each job asks for; it asks for all as the sweep's first words say."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if str(config.hydra.launcher.get("_target_")).endswith(".submitit_launcher.SlurmLauncher"):
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

            SlurmLauncher.launch = launch


def launch(self: "SlurmLauncher", job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
    """Submits an array of jobs for each set of settings of `hydra.launcher` that they have, and waits for all."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    assert self.config is not None
    assert self.hydra_context is not None
    of_any_queue = set(OmegaConf.structured(BaseQueueConf))
    alike: dict[str, list[tuple[int, Sequence[str]]]] = {}
    for number, overrides in enumerate(job_overrides, initial_job_idx):
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        asked = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        alike.setdefault(json.dumps(asked), []).append((number, overrides))
    jobs: dict[int, Any] = {}
    for asked, numbered in alike.items():
        settings = {name: value for name, value in json.loads(asked).items() if name != "_target_"}
        executor = submitit.AutoExecutor(
            folder=settings.pop("submitit_folder"),
            cluster="slurm",
            slurm_max_num_timeout=settings.pop("max_num_timeout"),
        )
        executor.update_parameters(
            **{name if name in of_any_queue else f"slurm_{name}": value for name, value in settings.items()}
        )
        state = Singleton.get_state()
        calls = [(list(words), "hydra.sweep.dir", number, f"job {number}", state) for number, words in numbered]
        submitted = executor.map_array(self, *zip(*calls, strict=True))
        jobs |= dict(zip([number for number, _ in numbered], submitted, strict=True))
    returned = _waited_for(jobs)
    return [returned[number] for number in sorted(returned)]


def _waited_for(jobs: dict[int, Any]) -> dict[int, JobReturn]:
    """What each job returned, when all have ended; nothing for one that ended without a result, which is told.

    submitit learns of such an end from SLURM's accounting, which not every cluster has, and would wait for ever.
    """
    returned: dict[int, JobReturn] = {}
    absent: dict[int, float] = {}
    while True:
        queue = _queue()
        for number, job in jobs.items():
            if number in returned:
                continue
            if job.done():
                returned[number] = _result(number, job)
            elif queue is None or job.job_id in queue:
                absent.pop(number, None)
            elif time.monotonic() - absent.setdefault(number, time.monotonic()) > LAG:
                returned[number] = _no_result(number, job)
        if len(returned) == len(jobs):
            return returned
        time.sleep(LOOKS)


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
    """The jobs that SLURM has, waiting or running; None if it does not answer now."""
    try:
        done = subprocess.run(["squeue", "--me", "-h", "-r", "-o", "%i"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return set(done.stdout.split())
