"""The folder of a run: a new or an earlier one, the checkpoint to resume from, and the result of a finished job."""

import os
import re
import shlex
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.types import RunMode
from lightning.pytorch import LightningModule
from omegaconf import DictConfig

from infvit.errors import UsageError
from infvit.run import identity
from infvit.run.checkpoint import (
    LAST,
    classes_of,
    link_last,
    matching_weights,
    newest_first,
    newest_intact,
    read_checkpoint,
    step_of,
)
from infvit.run.files import tolerate_write_errors
from infvit.run.ranks import is_global_zero
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError

CHECKPOINTS = "checkpoints"


def run_folder(new: str, config_hash: str = "", resume: str | None = None) -> str:
    """The run's folder: `new`, or with resume=auto the one beside it of the same configuration that came furthest.

    An earlier folder counts if its run finished or left a checkpoint. Of several at the same step the one that started
    last counts, by what it recorded: files' times change when they are copied, and clocks go back. A new folder is
    created at once, as NEW_2 if there is one already: several runs may start within one second.
    """
    found: list[tuple[bool, int, str, str]] = []
    for path in Path(new).parent.glob(f"*/{RESULT_FILE}") if resume == "auto" else ():
        result, checkpoints = _result(path, config_hash), newest_first(path.parent / CHECKPOINTS)
        if result is not None and (result.status == "finished" or checkpoints):
            step = step_of(checkpoints[0]) if checkpoints else -1
            found.append((result.status == "finished", step, result.started, str(path.parent)))
    if found:
        return max(found)[-1]
    for name in (new, *(f"{new}_{number}" for number in range(2, 1000))) if is_global_zero() else ():
        try:
            Path(name).mkdir(parents=True)
            return name
        except FileExistsError:
            continue
        except OSError:  # such as a full disk, which `infvit.cli.preflight` reports
            break
    return new


def finished_result(cfg: DictConfig) -> Result | None:
    """The result of this job of a sweep, or of the run to resume, if it finished earlier with this configuration."""
    hydra = HydraConfig.get()
    if hydra.mode != RunMode.MULTIRUN and cfg.get("resume") != "auto":
        return None
    path = Path(hydra.runtime.output_dir) / RESULT_FILE
    result = _result(path, identity.config_hash(cfg)) if path.is_file() else None
    return result if result is not None and result.status == "finished" else None


def report_other_code(cfg: DictConfig) -> None:
    """Prints a line if this job of a sweep, or the run to resume, was run before by other code and not yet by this."""
    hydra = HydraConfig.get()
    paths = [*Path(hydra.runtime.output_dir).parent.glob(f"*/{RESULT_FILE}")]
    if not paths or (hydra.mode != RunMode.MULTIRUN and cfg.get("resume") != "auto"):
        return
    config, _, code = identity.config_hash(cfg).partition("-")
    same = [r for path in paths if (r := _result(path)) and str(r.extra.get("config_hash")).startswith(f"{config}-")]
    if same and all(result.code != code for result in same):
        last = max(same, key=lambda result: result.started)
        since = f"since it {'finished' if last.status == 'finished' else 'began'} (#{last.code} → #{code})"
        print(f"{last.model} seed {last.seed}: its code has changed {since}: it runs again", flush=True)


def checkpoint_to_resume(cfg: DictConfig, run_dir: Path, module: LightningModule, data: Any, run: Result) -> str | None:
    """The checkpoint to resume from, None to start from scratch; its classes are matched with the data's by name.

    A job of a sweep always resumes from what its folder holds, so that repeating the command loses nothing.

    Raises:
        UsageError: the folder holds checkpoints and `resume` is not given, or the checkpoint does not fit the module or
            is of another model, recipe or seed than this run.
    """
    folder, checkpoint = run_dir / CHECKPOINTS, cfg.resume
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    if cfg.resume == "auto" or (sweep and newest_first(folder)):
        newest = newest_intact(folder)
        if newest is None and cfg.resume == "auto" and is_global_zero():
            print(f"resume=auto: no run of this configuration to resume in {run_dir.parent}", flush=True)
        if newest is not None and is_global_zero() and (folder / LAST).resolve() != newest.resolve():
            # The run was killed before it wrote the link.
            with tolerate_write_errors(LAST, "it links to an older checkpoint"):
                link_last(newest)
        checkpoint = None if newest is None else str(newest)
    elif cfg.resume is None and newest_first(folder):
        raise UsageError(
            f"{run_dir} holds checkpoints of an earlier run: resume it with resume=auto, or give another folder"
        )
    if checkpoint is not None:
        content = read_checkpoint(checkpoint)
        data.match_classes(classes_of(checkpoint, content), checkpoint)
        matching_weights(checkpoint, content, module)
        _check_same_run(checkpoint, run)
    return checkpoint


def run_command() -> list[str]:
    """The words of the command that repeats this run alone, wherever its config comes from."""
    hydra = HydraConfig.get()
    folders = [source.path for source in hydra.runtime.config_sources if source.provider == "command-line"]
    options = [word for folder in folders for word in ("--config-dir", folder)]
    options += [] if hydra.job.config_name == "train" else ["--config-name", str(hydra.job.config_name)]
    searched = [override for override in hydra.overrides.hydra if override.startswith("hydra.searchpath=")]
    return ["python", "train.py", *options, *hydra.overrides.task, *searched]


def resume_command() -> str:
    """The command that resumes this run in its folder, quoted for a shell."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        return "the sweep's command, again"
    words = [word for word in run_command() if not word.startswith(("resume=", "hydra.searchpath="))]
    where = [override for override in hydra.overrides.hydra if not override.startswith("hydra.mode=")]
    if not any(override.startswith("hydra.run.dir=") for override in where):
        folder = os.path.relpath(hydra.runtime.output_dir)
        plain = re.fullmatch(r"[\w./-]+", folder, re.ASCII)  # to Hydra's grammar
        where.append(f"hydra.run.dir={folder if plain else QuotedString(folder, Quote.double).with_quotes()}")
    return shlex.join([*words, *where, "resume=auto"])


def _check_same_run(checkpoint: str, run: Result) -> None:
    """Raises UsageError if the result.json of the checkpoint's run has another model, recipe or seed.

    A checkpoint without a readable result.json is accepted.
    """
    earlier = _result(Path(checkpoint).resolve().parent.parent / RESULT_FILE)
    if earlier is None:
        return
    found, expected = (
        {"model": one.model, "recipe": f"{one.recipe}#{one.recipe_hash}", "seed": one.seed} for one in (earlier, run)
    )
    if earlier.code != run.code and is_global_zero():
        print(f"{checkpoint} was trained by other code (#{earlier.code}, this is #{run.code})", flush=True)
    differing = [name for name in expected if found[name] != expected[name]]
    if differing:
        raise UsageError(
            f"{checkpoint} is of a run with {', '.join(f'{name} {found[name]}' for name in differing)}: expected "
            f"{', '.join(f'{name} {expected[name]}' for name in differing)}; repeat the overrides of its command "
            f"({earlier.command}), or leave out resume= to start from scratch"
        )


def _result(path: Path, config_hash: str | None = None) -> Result | None:
    """The result.json, None if it cannot be read or has another hash than the one that is given."""
    try:
        result = Result.read(path)
    except UnreadableResultError:
        return None
    return result if config_hash in (None, result.extra.get("config_hash")) else None
