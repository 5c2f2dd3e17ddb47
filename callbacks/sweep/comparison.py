"""The Hydra callback that ends a sweep with its comparison: in files, in the terminal and in W&B."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import wandb
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from callbacks.loggers import Mode, wandb_mode, wandb_settings, wandb_table
from callbacks.sweep.progress import JOBS
from infvit.compare import Comparison, records, to_text, write_comparison
from infvit.errors import UsageError
from infvit.run.ranks import is_global_zero
from infvit.run.result import RESULT_FILE


class CompareAtEnd(Callback):
    """Writes and prints the comparison at the end of a sweep; exits with 1 if a job failed.

    Runs of earlier commands in the same folder are in the table, but do not make this command fail. `margin` and
    `curve_epochs` are `Comparison`'s.
    """

    def __init__(
        self, margin: float = Comparison.margin, curve_epochs: Sequence[int] = Comparison.curve_epochs
    ) -> None:
        self.options: dict[str, Any] = {"margin": margin, "curve_epochs": tuple(curve_epochs)}

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if config.get("dry_run") or not is_global_zero():
            return
        sweep = Path(config.hydra.sweep.dir)
        try:
            comparison = write_comparison([sweep], sweep, **self.options)
        except UsageError as error:  # Hydra turns exceptions of its callbacks into warnings, hence the exit
            print(f"error: {error}; python -m infvit.compare {sweep} --out {sweep} writes it later", file=sys.stderr)
            sys.exit(1)
        print(f"\n{to_text(comparison)}\n\ncomparison: {sweep / 'comparison.html'} (also .md, .csv, .tex)")
        pictures = sorted(sweep.glob("*.png"))
        if pictures:
            print("pictures:   " + "  ".join(str(picture) for picture in pictures))
        if "wandb" in (config.get("logger") or {}):
            _to_wandb(config, sweep, comparison, pictures)
        failed = unfinished_jobs(sweep, comparison)
        if failed:
            print(f"error: {len(failed)} jobs of the sweep did not finish: {', '.join(failed)}", file=sys.stderr)
            sys.exit(1)


def unfinished_jobs(sweep: Path, comparison: Comparison) -> list[str]:
    """The folders of this command's jobs that did not finish, with their status; of all jobs if `JOBS` is missing."""
    ended: dict[Path, str] = {Path(run.run_dir).resolve(): run.status for run in comparison.runs}
    for bad in comparison.unreadable:  # other files, such as evaluations, are not of a job
        if Path(bad.path).name == RESULT_FILE:
            ended[Path(bad.path).parent.resolve()] = f"{RESULT_FILE} {bad.reason}"
    jobs = sorted((sweep / JOBS).glob("*"), key=lambda path: int(path.name))
    begun = dict.fromkeys(Path(line).resolve() for path in jobs for line in path.read_text().splitlines()[:1]) or ended
    ends = {folder: ended.get(folder, f"left no {RESULT_FILE}") for folder in begun}
    return [f"{folder.name} ({end})" for folder, end in ends.items() if end != "finished"]


def _to_wandb(config: DictConfig, sweep: Path, comparison: Comparison, pictures: list[Path]) -> None:
    """Logs the comparison as a W&B run and, online, as a report; errors of W&B become warnings, the sweep is done."""
    logger = config.logger.wandb
    mode: Mode = logger.get("mode") or wandb_mode()
    try:
        entity = _log(logger, mode, sweep, comparison, pictures)
    except Exception as error:  # W&B raises many types
        _warn("the comparison is not on W&B", error, sweep)
        if mode == "online":
            _log(logger, "offline", sweep, comparison, pictures)
        return
    if mode == "online":
        from callbacks.sweep import wandb_report  # takes half a second, which a single run need not wait

        try:
            made = wandb_report.report(logger.project, entity, config.name, sweep.name, comparison)
            print(f"report:     {wandb_report.save(made)}")
        except Exception as error:
            _warn("no W&B report was made", error, sweep)


def _warn(what: str, error: Exception, sweep: Path) -> None:
    """Prints one line: what failed, which page shows the same, and how to upload it later."""
    why = (" ".join(str(error).split()) or type(error).__name__).rstrip(".")
    page = sweep / "comparison.html"
    later = f"wandb sync {sweep}/wandb/offline-run-* {sweep}/*/wandb/offline-run-*"
    print(f"warning: {what} ({why}); {page} shows the same, and to upload later: {later}", file=sys.stderr)


def _log(logger: DictConfig, mode: Mode, sweep: Path, comparison: Comparison, pictures: list[Path]) -> str:
    """Logs table, page and pictures as a run of the sweep's group; returns the run's entity."""
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
