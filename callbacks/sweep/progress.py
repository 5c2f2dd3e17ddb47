"""A sweep's folder is locked, its jobs are announced and counted, and after each one the table so far is printed."""

import datetime
import math
import os
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from infvit.cli.run_folder import finished_result
from infvit.compare import Comparison
from infvit.compare.columns import table
from infvit.run.environment import SWEEP_COMMAND, SWEEP_FOLDER, command
from infvit.run.files import FolderInUseError, FolderLock, tolerate_write_errors
from infvit.run.ranks import is_global_zero

JOBS = ".jobs"
"""A folder with one file per job of this command: the job's folder, and "ran" or "skipped" once it has ended."""


class SweepProgress(Callback):
    """Locks the sweep's folder, counts its jobs, and prints the table so far after each one; on rank zero only."""

    def __init__(self) -> None:
        self.jobs: int | None = None
        self.since = 0.0
        self.skipped = False

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        os.environ[SWEEP_COMMAND] = command()
        if not is_global_zero():
            return
        folder = Path(config.hydra.sweep.dir)
        try:
            self.lock = FolderLock(folder)
        except FolderInUseError as holder:  # Hydra turns exceptions of its callbacks into warnings, hence the exit
            print(
                f"error: {folder} is the folder of a sweep that is running ({holder}): wait for its end, or give this "
                "one another folder with name=NAME or hydra.sweep.dir=DIR",
                file=sys.stderr,
            )
            sys.exit(2)
        shutil.rmtree(folder / JOBS, ignore_errors=True)
        (folder / JOBS).mkdir()
        os.environ[SWEEP_FOLDER] = str(folder)
        self.jobs, self.since = number_of_jobs(config), time.time()
        print(f"sweep: {self.jobs} jobs in {folder}; the same command again runs what is not finished", flush=True)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self.skipped = finished_result(config) is not None
        if config.hydra.mode == RunMode.MULTIRUN and is_global_zero():
            print(f"\njob {config.hydra.job.num}: {' '.join(config.hydra.overrides.task)}", flush=True)
            _note(config, config.hydra.runtime.output_dir)

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        job_return.cfg = job_return.hydra_cfg = None  # Hydra would keep those of all jobs until the sweep ends
        if not is_global_zero():
            return
        folder = Path(config.hydra.sweep.dir)
        _note(config, "skipped" if self.skipped else "ran")
        noted = [path.read_text() for path in (folder / JOBS).iterdir()]
        ended = [end for end in ("ran", "skipped") for text in noted if text.endswith(f"\n{end}\n")]
        lines = [f"── {progress(ended, self.jobs, time.time() - self.since)}"]
        if not self.skipped and len(ended) != self.jobs:
            lines.append(table(Comparison.from_dirs([folder])).text())
        print("\n".join(lines), flush=True)


def _note(config: DictConfig, line: str) -> None:
    path = Path(config.hydra.sweep.dir) / JOBS / str(config.hydra.job.num)
    with tolerate_write_errors(JOBS, "the sweep counts too few jobs"), path.open("a") as file:
        file.write(f"{line}\n")


def number_of_jobs(config: DictConfig) -> int:
    """Number of jobs of the command: the trials of a search, or the product of all swept values."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    words = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*words, *config.hydra.overrides.task])
    values = {o.get_key_element(): list(o.sweep_string_iterator()) if o.is_discrete_sweep() else [o] for o in overrides}
    return math.prod(map(len, values.values()))


def progress(ended: list[str], jobs: int | None, seconds: float) -> str:
    """Such as "3 of 12 jobs, 1 of them finished before · ETA 0:04:10"; skipped jobs do not count for the ETA."""
    ran = ended.count("ran")
    before = f", {len(ended) - ran} of them finished before" if ran < len(ended) else ""
    eta = "-:--:--"
    if ran and jobs:
        eta = str(datetime.timedelta(seconds=round(max(seconds, 0) / ran * max(jobs - len(ended), 0))))
    return f"{len(ended)} of {jobs or '?'} jobs{before} · ETA {eta}"
