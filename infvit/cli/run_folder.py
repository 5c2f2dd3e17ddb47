"""Which run goes on: `resume=auto` finds the newest one of the same configuration, and its newest whole checkpoint."""

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from infvit.errors import UsageError
from infvit.run.checkpoint import LAST, make_last, newest_first, newest_intact
from infvit.run.files import tolerate_write_errors
from infvit.run.ranks import is_global_zero
from infvit.run.result import RESULT_FILE, Result, UnreadableResultError

CHECKPOINTS = "checkpoints"


def run_folder(fresh: str, config_hash: str, resume: str | None) -> str:
    """The folder of the run: `fresh`, or with resume=auto the newest one beside it of the same configuration.

    It has to be finished or to hold a checkpoint.
    """
    if resume != "auto":
        return fresh
    results = sorted(Path(fresh).parent.glob("*/result.json"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for path in results:
        try:
            result = Result.read(path)
        except UnreadableResultError:
            continue
        same = result.extra.get("config_hash") == config_hash
        if same and (result.status == "finished" or newest_first(path.parent / CHECKPOINTS)):
            return str(path.parent)
    return fresh


def checkpoint_to_go_on_from(cfg: DictConfig, run_dir: Path) -> str | None:
    """The checkpoint that `resume` asks for; None to start anew.

    The jobs of a sweep always go on from what their folder holds, so that the same command again loses nothing.
    """
    sweep = HydraConfig.get().mode == RunMode.MULTIRUN
    folder = run_dir / CHECKPOINTS
    if cfg.resume == "auto" or (sweep and newest_first(folder)):
        found = newest_intact(folder)
        if found is None:
            if cfg.resume == "auto" and is_global_zero():
                print(f"resume=auto: no run of this configuration to go on with in {run_dir.parent}", flush=True)
            return None
        if is_global_zero() and (folder / LAST).resolve() != found.resolve():  # a kill came before the link
            with tolerate_write_errors(LAST, "it links to the checkpoint before"):
                make_last(found)
        return str(found)
    if cfg.resume is None and newest_first(folder):
        raise UsageError(
            f"{run_dir} holds checkpoints of an earlier run: go on with it by resume=auto, or give another folder"
        )
    return cfg.resume


def check_run(checkpoint: str | None, ours: Result) -> None:
    """Raises UsageError if the checkpoint is of a run with another model, recipe or seed, as its result says.

    Its optimizer and schedule would go on under the name of this run's. Without a result beside it, it is taken.
    """
    if checkpoint is None:
        return
    try:
        theirs = Result.read(Path(checkpoint).resolve().parent.parent / RESULT_FILE)
    except UnreadableResultError:
        return
    there, here = (
        {"model": f"{run.model}", "recipe": f"{run.recipe}#{run.recipe_hash}", "seed": f"{run.seed}"}
        for run in (theirs, ours)
    )
    other = [name for name in there if there[name] != here[name]]
    if other:
        found, expected = (", ".join(f"{name} {run[name]}" for name in other) for run in (there, here))
        raise UsageError(
            f"{checkpoint} is of a run with {found}: expected {expected}; give what it was started with "
            f"({theirs.command}), or leave out resume= to start anew"
        )
