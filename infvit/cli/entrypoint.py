"""How a command ends: mistakes of use in one line with exit code 2, and a failing job does not stop its sweep."""

import contextlib
import functools
import multiprocessing
import os
import re
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.errors import InstantiationException
from hydra.types import RunMode
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from omegaconf import DictConfig, OmegaConf

from infvit.cli.config_errors import format_config_error, printable_line
from infvit.cli.devices import distributed_job
from infvit.cli.run_folder import finished_result, report_other_code, resume_command
from infvit.cli.targets import offer_attentions
from infvit.errors import Interrupted, UsageError
from infvit.run.environment import SWEEP_COMMAND, SWEEP_FOLDER, command
from infvit.run.files import disk_full_message, print_line, tolerate_any_terminal
from infvit.run.ranks import broadcast_from_rank_zero, is_global_zero, rank_zero_reports, store_outlives_workers
from infvit.run.result import RESULT_FILE, score

Task = Callable[[DictConfig], Any]

FULL_ERROR = "INFVIT_FULL_ERROR"
"""The user's HYDRA_FULL_ERROR, which `run` overwrites; an environment variable, because workers inherit it."""

HYDRA_OPTIONS = re.compile(
    r"-[hcprmi]|-sc|-c[pnd]|--(help|hydra-help|version|cfg|resolve|package|run|multirun|shell-completion|config-path"
    r"|config-name|config-dir|experimental-rerun|info)(=.*)?"
)

HARMLESS_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",  # Lightning on torch's pytree
    r"You're resuming from a checkpoint that ended before the epoch ended",  # data.order resumes with the next batch
    r"It is recommended to use `self.log\(.*sync_dist=True",  # torchmetrics reduces over processes itself
    r"The `srun` command is available on your system but is not used",  # having SLURM is no reason to use it
)


def run(main: Callable[[], Any]) -> None:
    """Runs a `hydra.main` function: mistakes of use end in one line and exit code 2, bugs in their traceback."""
    tolerate_any_terminal()
    os.environ.setdefault(FULL_ERROR, os.environ.get("HYDRA_FULL_ERROR", "0"))
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra raises errors instead of printing them over many lines
    try:
        for word in (os.getcwd(), *sys.argv[1:]):
            if word.encode(errors="ignore").decode() != word:
                raise UsageError(
                    f"{word} is not UTF-8, as config and result.json are: give file and folder another name"
                )
            if word.startswith("-") and not HYDRA_OPTIONS.fullmatch(word):
                raise UsageError(f"{word} is not an option: overrides have no dashes, as seed=1 or +name=value")
        offer_attentions()
        with interruptible():
            main()
    except Interrupted:
        sweep = os.environ.get(SWEEP_FOLDER)
        if sweep and is_global_zero() and any(Path(sweep).glob(f"*/{RESULT_FILE}")):
            from infvit.compare import Comparison  # takes half a second, which other commands need not wait
            from infvit.compare.columns import table

            print(f"the sweep so far:\n{table(Comparison.from_dirs([sweep])).text()}", flush=True)
        raise
    except Exception as error:  # Hydra fails in many ways on words that it cannot parse
        found = f"{' '.join(sys.argv[1:])} cannot be read ({type(error).__name__}: {error}): write NAME=VALUE"
        _exit(error, one_line(error) or printable_line(found))


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Has Ctrl-C raise Interrupted with the command that resumes, and a second one end this process at once.

    `callbacks.checkpointing` handles it during training. Forked processes end without a line.
    """
    before, process = signal.getsignal(signal.SIGINT), os.getpid()
    if before == signal.SIG_IGN:  # as a shell does for "&"
        yield
        return

    def interrupt(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        if os.getpid() != process:
            signal.raise_signal(number)
        hydra = HydraConfig.get() if HydraConfig.initialized() else None
        has_folder = (
            hydra is not None and hydra.job.name == "train" and not OmegaConf.is_missing(hydra.runtime, "output_dir")
        )
        again = os.environ.get(SWEEP_COMMAND) or (resume_command() if has_folder else command())
        line = f"SIGINT: stopped, earlier checkpoints and results stay; resume with: {again}"
        if is_global_zero():
            print_line(f"\n{line}")
        raise Interrupted(line, 128 + number)

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def continue_sweep_on_error(task: Task) -> Task:
    """Decorates a Hydra task: a failing job of a sweep is reported, and the next job runs.

    The failed job's `result.json` has its error; the callback that ends the sweep names the job and exits with 1. A job
    that finished earlier with the same configuration is skipped and returns its earlier value.
    """

    @functools.wraps(task)
    def job(cfg: DictConfig) -> Any:
        tolerate_any_terminal()
        for message in HARMLESS_WARNINGS:  # here, because the jobs of a parallel sweep run in other processes
            warnings.filterwarnings("ignore", message=message)
        # joblib's default in those processes cannot start the processes of FFCV and of data loaders.
        multiprocessing.set_start_method(multiprocessing.get_all_start_methods()[0], force=True)
        done = finished_result(cfg)
        if done is not None:
            if is_global_zero():
                print(f"skipped: {done.model} seed {done.seed} is finished; delete {done.run_dir} to run it again")
            return score(done)
        if is_global_zero():
            report_other_code(cfg)
        hydra = HydraConfig.get()
        sweep = hydra.mode == RunMode.MULTIRUN
        try:
            if sweep and store_outlives_workers():  # rank zero may still upload its last job to W&B: wait for it
                broadcast_from_rank_zero(f"start of job {hydra.job.num}", "")
            with interruptible(), distributed_job():
                return task(cfg)
        except Exception as error:
            if not sweep:
                _exit(error, one_line(error))
            _report_failed_job(error, hydra.job.num, list(hydra.overrides.task))
            return None

    return job


def _report_failed_job(error: Exception, number: int, overrides: list[str]) -> None:
    line = one_line(error)
    text = f"job {number} failed ({' '.join(overrides)}): {line or repr(error)}"
    if not rank_zero_reports(f"error of job {number}", text):
        print(text, file=sys.stderr)
    if line is None or os.environ.get(FULL_ERROR) == "1":
        traceback.print_exception(error)


def _exit(error: Exception, line: str | None) -> NoReturn:
    """Exits with 2 and the line, or without a line with 1 and the traceback."""
    if line is None or os.environ.get(FULL_ERROR) == "1":
        traceback.print_exception(error)
    if line is None:
        sys.exit(1)
    if not rank_zero_reports("error", line):
        print(f"error: {line}", file=sys.stderr)
    sys.exit(2)


def one_line(error: BaseException) -> str | None:
    """The line that reports the error and how to fix it; None if the error is a bug and not a mistake of use."""
    if isinstance(error, UsageError):  # one from a data loader's worker includes its traceback
        return printable_line(str(error).rpartition(f"{UsageError.__module__}.UsageError: ")[2])
    if isinstance(error, Interrupted):
        return error.line
    if isinstance(error, OSError) and disk_full_message(error):
        return disk_full_message(error)
    if isinstance(error, InstantiationException) and error.__cause__ is not None:
        return one_line(error.__cause__) or printable_line(format_config_error(error) or "")
    if type(error).__name__ == "TerminatedWorkerError":  # of joblib, an optional dependency
        return "a process of the sweep was killed, perhaps for lack of memory: the same command runs what is left"
    if type(error).__name__ == "FailedJobError":  # of submitit, an optional dependency
        text = printable_line(str(error))
        return f"SLURM refuses the jobs ({text}): request what it has, see conf/hydra/launcher/slurm.yaml"
    line = str(error) if isinstance(error, MisconfigurationException) else format_config_error(error)
    return None if line is None else printable_line(line)
