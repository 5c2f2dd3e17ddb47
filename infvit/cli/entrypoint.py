"""How a command fails: mistakes of use in one line with exit code 2, and one bad job does not stop a sweep."""

import functools
import multiprocessing
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Any, NoReturn

from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig

from callbacks.sweep.progress import finished_before
from infvit.cli.config_errors import format_config_error, joined
from infvit.errors import Interrupted, UsageError
from infvit.run.files import disk_full_message
from infvit.run.ranks import broadcast_from_rank_zero, is_global_zero, rank_zero_reports, store_outlives_workers
from infvit.run.result import score

Task = Callable[[DictConfig], Any]

WANTS_TRACEBACK = "INFVIT_FULL_ERROR"
"""Keeps what the user set HYDRA_FULL_ERROR to, also for the processes of a distributed job."""


NOISE = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning on torch's pytree
    r"You're resuming from a checkpoint that ended before the epoch ended",  # data.order goes on with the next batch
    r"It is recommended to use `self.log\(.*sync_dist=True",  # torchmetrics sums over processes by itself
    r"The `srun` command is available on your system but is not used",  # SLURM's tools alone are no reason to use them
)


def one_line(error: BaseException) -> str | None:
    """The line that tells a user what to mend, or None if the error is not a mistake of use but a bug."""
    if isinstance(error, UsageError):  # of a process that reads images with its traceback, as torch hands it on
        return joined(str(error).rpartition(f"{UsageError.__module__}.UsageError: ")[2])
    if isinstance(error, Interrupted):
        return error.line
    if isinstance(error, OSError) and disk_full_message(error):
        return disk_full_message(error)
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return one_line(error.__cause__) or joined(format_config_error(error) or "")
    if type(error).__name__ == "TerminatedWorkerError":  # joblib's, which not everyone has
        return "a process of the sweep was killed, perhaps for want of memory: the same command runs what is left"
    if type(error).__name__ == "FailedJobError":  # submitit's, likewise
        return (
            f"SLURM takes no such jobs ({joined(str(error))}): ask for what it has, see conf/hydra/launcher/slurm.yaml"
        )
    line = str(error) if isinstance(error, MisconfigurationException) else format_config_error(error)
    return None if line is None else joined(line)


def continue_sweep_on_error(task: Task) -> Task:
    """Decorates a Hydra task: in a sweep a failure is reported and the next job runs.

    The failed job's `result.json` says so; the sweep's last callback names it and exits with 1. A job of a sweep that
    has finished before, with the same configuration, is not run again: it returns what it returned then.
    """

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        for noise in NOISE:  # here, because a parallel sweep's jobs run in other processes
            warnings.filterwarnings("ignore", message=noise)
        # Those processes are joblib's, whose kind cannot start the ones that FFCV and data loaders ask for.
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        done = finished_before(cfg)
        if done is not None:
            if is_global_zero():
                print(f"skipped: {done.model} seed {done.seed} is finished; delete {done.run_dir} to run it again")
            return score(done)
        try:
            if HydraConfig.get().mode == RunMode.MULTIRUN and store_outlives_workers():
                # W&B may still upload what rank 0's last job left, which is no reason to miss it in this one.
                broadcast_from_rank_zero(f"start of job {HydraConfig.get().job.num}", "")
            return task(cfg)
        except Exception as error:
            if HydraConfig.get().mode != RunMode.MULTIRUN:
                _stop(error)
            number, overrides = HydraConfig.get().job.num, " ".join(HydraConfig.get().overrides.task)
            line = f"job {number} failed ({overrides}): {one_line(error) or repr(error)}"
            if not rank_zero_reports(f"error of job {number}", line):
                print(line, file=sys.stderr)
            if one_line(error) is None or _wants_traceback():
                traceback.print_exception(error)
            return None

    return job


def run(main: Callable[[], Any]) -> None:
    """Runs a `hydra.main`: mistakes of use end in one line and exit code 2, anything else in its traceback."""
    before = os.environ.get("HYDRA_FULL_ERROR")
    os.environ.setdefault(WANTS_TRACEBACK, before or "0")
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra hands errors on instead of printing them over many lines
    try:
        _check_words()
        main()
    except Exception as error:
        _stop(error)
    finally:
        os.environ.pop(WANTS_TRACEBACK)
        os.environ.pop("HYDRA_FULL_ERROR")
        if before is not None:
            os.environ["HYDRA_FULL_ERROR"] = before


def _check_words() -> None:
    """Raises UsageError for words with dashes that Hydra does not know: argparse would print all that it does."""
    parser = get_args_parser()

    def refuse(message: str) -> NoReturn:
        raise UsageError(f"{message}: settings have no dashes in front, as seed=1 or +name=value; --help shows them")

    parser.error = refuse  # type: ignore[method-assign]
    parser.parse_args()


def _stop(error: Exception) -> NoReturn:
    line = one_line(error)
    if line is None and not _in_a_job(error):  # Hydra stumbles over the words of the command in many ways
        line = joined(f"{' '.join(sys.argv[1:])} cannot be read ({type(error).__name__}: {error}): write NAME=VALUE")
    if line is None:
        raise error
    if _wants_traceback():
        traceback.print_exception(error)
    if not rank_zero_reports("error", line):
        print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def _in_a_job(error: Exception) -> bool:
    return any(
        frame.f_code.co_name == "job" and frame.f_globals is globals()
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def _wants_traceback() -> bool:
    return os.environ.get(WANTS_TRACEBACK) == "1"
