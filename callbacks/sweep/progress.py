"""Sweeps: one process in a folder, finished jobs left alone, and after each job where the sweep stands."""

import datetime
import os
import sys
import time
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from infvit.cli.run_folder import finished_result
from infvit.compare import Comparison, Estimate, Row
from infvit.compare.notes import shared
from infvit.run.environment import SWEEP_COMMAND, command
from infvit.run.files import FolderInUseError, FolderLock, tolerate_write_errors
from infvit.run.ranks import is_global_zero
from infvit.run.result import score

ENDED = ".ended"
"""One line for each job that this command has ended, "3 ran" or "3 skipped"; jobs in parallel processes append to it.

A job that SLURM starts again has another line.
"""

LINES = 20
"""Rows of the table so far that are shown after a job; the comparison at the end has all."""


class Sweep(Callback):
    """Holds the sweep's folder for this process, counts its jobs, and shows the table so far after each one.

    Where torchrun started several processes the first one alone does, and in a job of several tasks on SLURM.
    """

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
        (folder / ENDED).write_text("")
        self.jobs, self.since = number_of_jobs(config), time.time()
        print(f"sweep: {self.jobs} jobs in {folder}; the same command again runs what is not finished", flush=True)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        self.skipped = finished_result(config) is not None

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if config.hydra.mode != RunMode.MULTIRUN:
            return
        job_return.cfg = job_return.hydra_cfg = None  # Hydra would keep every job's until the sweep ends
        if not is_global_zero():
            return
        folder = Path(config.hydra.sweep.dir)
        with tolerate_write_errors(ENDED, "the count of jobs is too low"), (folder / ENDED).open("a") as file:
            file.write(f"{config.hydra.job.num} {'skipped' if self.skipped else 'ran'}\n")
        ended = [*dict(line.split() for line in (folder / ENDED).read_text().splitlines()).values()]
        lines = [f"── {progress(ended, self.jobs, time.time() - self.since)}"]
        if not self.skipped and len(ended) != self.jobs:
            lines += so_far(Comparison.from_dirs([folder]))
        print("\n".join(lines), flush=True)


def number_of_jobs(config: DictConfig) -> int | None:
    """How many jobs the command makes: trials of a search, or the product of all swept values."""
    sweeper = config.hydra.sweeper
    if "n_trials" in sweeper:
        return int(sweeper.n_trials)
    words = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
    overrides = parser.parse_overrides([*words, *config.hydra.overrides.task])
    return len(BasicSweeper.split_arguments(overrides, None)[0])


def progress(ended: list[str], jobs: int | None, seconds: float) -> str:
    """ "3 of 12 jobs, 1 of them finished before · ETA 0:04:10": jobs that were skipped took no time."""
    ran = ended.count("ran")
    before = f", {len(ended) - ran} of them finished before" if ran < len(ended) else ""
    eta = "-:--:--"
    if ran and jobs:
        eta = str(datetime.timedelta(seconds=round(seconds / ran * max(jobs - len(ended), 0))))
    return f"{len(ended)} of {jobs or '?'} jobs{before} · ETA {eta}"


def so_far(comparison: Comparison) -> list[str]:
    """The rows in order of top-1, each in one line of at most 80 columns: name, seeds, mean and 95% interval.

    Before them, in one such line, the overrides that all have.
    """
    lines = [f"   {line}" if len(line) <= 77 else f"   {line[:76]}…" for line in shared(comparison)]
    for row in sorted(comparison.rows, key=lambda row: -(_top1(row).mean or -1))[:LINES]:
        top1 = _top1(row)
        mean = "" if top1.mean is None else f"{100 * top1.mean:.2f}"
        half = "" if top1.half_width is None else f"± {100 * top1.half_width:.2f}"
        name = row.name if len(row.name) <= 42 else row.name[:20] + "…" + row.name[-21:]
        line = f"   {name:<42} {row.finished:>2} seeds {mean:>6} {half:<7} {row.troubles}"
        lines.append(line.rstrip()[:80])
    if len(comparison.rows) > LINES:
        lines.append(f"   … and {len(comparison.rows) - LINES} more")
    return lines


def _top1(row: Row) -> Estimate:
    return Estimate.of(score(run) for run in row.counted)
