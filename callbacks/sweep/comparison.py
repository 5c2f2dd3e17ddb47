"""The Hydra callback that ends a sweep with its comparison: files, the table in the terminal, the same in W&B."""

import shutil
import sys
from pathlib import Path
from typing import Any

import wandb
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from callbacks.loggers import Mode, wandb_mode, wandb_settings, wandb_table
from infvit.compare import Comparison, records, to_text, write_comparison
from infvit.errors import UsageError
from infvit.run.files import tolerate_write_errors
from infvit.run.ranks import is_global_zero
from infvit.run.result import RESULT_FILE

BEGUN = ".begun"
"""Holds a file for each job that this command has begun, which names its folder; jobs may begin on several nodes."""


class CompareAtEnd(Callback):
    """Announces each job of a sweep, and at its end writes and prints the comparison; exits with 1 if a job failed.

    Runs that earlier commands left in the folder are in the table, and no reason for this command to fail.
    """

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if is_global_zero() and not config.get("dry_run"):
            shutil.rmtree(Path(config.hydra.sweep.dir) / BEGUN, ignore_errors=True)

    def on_job_start(self, config: DictConfig, **_: Any) -> None:
        if config.hydra.mode.name != "MULTIRUN" or not is_global_zero():
            return
        print(f"\njob {config.hydra.job.num}: {' '.join(config.hydra.overrides.task)}", flush=True)
        if not config.get("dry_run"):
            begun = Path(config.hydra.sweep.dir) / BEGUN / str(config.hydra.job.num)
            with tolerate_write_errors(BEGUN, "the sweep does not report it if this job fails"):
                begun.parent.mkdir(parents=True, exist_ok=True)
                begun.write_text(config.hydra.runtime.output_dir)

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if config.get("dry_run") or not is_global_zero():
            return
        sweep = Path(config.hydra.sweep.dir)
        try:
            comparison = write_comparison([sweep], sweep)
        except UsageError as error:  # Hydra turns exceptions of its callbacks into warnings
            print(f"error: {error}; python -m infvit.compare {sweep} --out {sweep} writes it later", file=sys.stderr)
            sys.exit(1)
        print(f"\n{to_text(comparison)}\n\ncomparison: {sweep / 'comparison.html'} (also .md, .csv, .tex)")
        pictures = sorted(sweep.glob("*.png"))
        if pictures:
            print("pictures:   " + "  ".join(str(picture) for picture in pictures))
        if "wandb" in (config.get("logger") or {}):
            _to_wandb(config, sweep, comparison, pictures)
        failed = _failed(sweep, comparison)
        if failed:
            print(f"error: {len(failed)} jobs of the sweep did not finish: {', '.join(failed)}", file=sys.stderr)
            sys.exit(1)


def _failed(sweep: Path, comparison: Comparison) -> list[str]:
    """The jobs of this command that did not finish, and why, in words; of all, if it could not be kept which."""
    ended: dict[Path, str] = {Path(run.run_dir).resolve(): run.status for run in comparison.runs}
    # What else cannot be read, such as an evaluation, is told in the table; no job of the sweep left it.
    for bad in comparison.unreadable:
        if Path(bad.path).name == RESULT_FILE:
            ended[Path(bad.path).parent.resolve()] = f"{RESULT_FILE} {bad.reason}"
    jobs = sorted((sweep / BEGUN).glob("*"), key=lambda path: int(path.name))
    begun = dict.fromkeys(Path(path.read_text()).resolve() for path in jobs) or ended
    ends = {folder: ended.get(folder, f"left no {RESULT_FILE}") for folder in begun}
    return [f"{folder.name} ({end})" for folder, end in ends.items() if end != "finished"]


def _to_wandb(config: DictConfig, sweep: Path, comparison: Comparison, pictures: list[Path]) -> None:
    """The comparison as a W&B run and, online, as a report. What goes wrong with W&B is said; the sweep is done."""
    logger = config.logger.wandb
    mode: Mode = logger.get("mode") or wandb_mode()
    try:
        entity = _log(logger, mode, sweep, comparison, pictures)
    except Exception as error:  # W&B raises many kinds: no network, a wrong key, no room
        _say("the comparison is not on W&B", error, sweep)
        if mode == "online":
            _log(logger, "offline", sweep, comparison, pictures)
        return
    if mode == "online":
        from callbacks.sweep import wandb_report  # half a second, which no single run should wait

        try:
            made = wandb_report.report(logger.project, entity, config.name, sweep.name, comparison)
            print(f"report:     {wandb_report.save(made)}")
        except Exception as error:
            _say("no W&B report was made", error, sweep)


def _say(what: str, error: Exception, sweep: Path) -> None:
    """One line: what happened, where the same is to be seen, and how to upload later."""
    why = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
    page = sweep / "comparison.html"
    later = f"wandb sync {sweep}/wandb/offline-run-* {sweep}/*/wandb/offline-run-*"
    print(f"warning: {what} ({why}); {page} shows the same, and to upload later: {later}", file=sys.stderr)


def _log(logger: DictConfig, mode: Mode, sweep: Path, comparison: Comparison, pictures: list[Path]) -> str:
    """Log table, page and pictures as a run of the sweep's group; returns the entity that the run belongs to."""
    with wandb.init(
        project=logger.project,
        name=f"comparison-{sweep.name}",
        group=sweep.name,
        job_type="comparison",
        dir=sweep,
        mode=mode,
        settings=wandb_settings(),
    ) as run:
        run.log({"comparison": wandb_table(records(comparison)), "page": wandb.Html(str(sweep / "comparison.html"))})
        run.log({picture.stem: wandb.Image(str(picture)) for picture in pictures})
        return run.entity
