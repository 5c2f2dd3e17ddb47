"""The loggers of a run, W&B and a CSV file; all W&B runs are started with the settings of this module."""

import csv
import functools
import io
import json
import os
import secrets
import sys
from pathlib import Path
from typing import Any, Literal, cast

import requests
import wandb
from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from infvit.run.files import atomic_write, tolerate_write_errors

Mode = Literal["online", "offline", "disabled", "shared"]

ANSWER_TIMEOUT = 5.0
"""Seconds that W&B may take to accept a connection, and again to answer."""

FINISH_TIMEOUT = 300.0
"""Seconds that W&B may upload at the end of a run; the rest is on disk."""

SYNC = "Later: wandb sync RUN/wandb/offline-run-* (every run of a sweep: wandb sync SWEEP/*/wandb/offline-run-*)"

NOT_LOGGED = ("measure", "trainer", "data", "model")
"""Config keys that repeat others, or belong to the run that is measured."""


class OfflineFallbackWandbLogger(WandbLogger):
    """Logs to W&B, and to offline files for `wandb sync` where W&B cannot be reached or refuses to start a run.

    The run starts with the first value that is logged. A resumed run continues the W&B run of its folder; WANDB_RUN_ID
    names a single run, not those of a sweep, which are a group.

    Args:
        save_dir: folder of the run.
        mode: of W&B; by default `wandb_mode()`.
        init_timeout: seconds to wait for W&B to start a run before the run starts offline.
        options: of `wandb.init`, such as project, name, group, job_type and tags.
    """

    def __init__(self, save_dir: str, mode: Mode | None = None, init_timeout: float = 30, **options: Any) -> None:
        super().__init__(save_dir=save_dir, **options)
        self.folder, self.mode = Path(save_dir), mode
        self.options = {**options, "dir": save_dir, "settings": wandb_settings(init_timeout=init_timeout)}
        self.run: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self.run is None:
            self.run = self._start()
            self.run.define_metric("trainer/global_step")
            self.run.define_metric("*", step_metric="trainer/global_step", step_sync=True)
        return self.run

    def _start(self) -> Any:
        mode = self.mode or wandb_mode()
        given = None if self.options.get("group") else os.environ.get("WANDB_RUN_ID")
        options = {**self.options, "id": self.version or given, "resume": "allow"}
        try:
            return wandb.init(**options, mode=mode)
        except wandb.errors.CommError as error:
            if mode != "online":
                raise
            _report_offline(f"no run was started ({' '.join(str(error).split())[:200]})")
            wandb.teardown()  # its service holds the id of the run that was not started
            return wandb.init(**options, mode="offline")

    @property
    def version(self) -> str | None:
        """The id of the newest W&B run in the run's folder; None if there is none."""
        newest = max((path.name.partition("run-")[2] for path in self.folder.glob("wandb/*run-*-*")), default="")
        return newest.partition("-")[2] or None


class ResumableCSVLogger(Logger):
    """Logs to `metrics.csv`; rows are written completely or not at all.

    Rows for which the disk has no room are written with the next ones. A file that is there stays until `keep_rows`.

    Args:
        save_dir: folder of the run.
    """

    def __init__(self, save_dir: str) -> None:
        super().__init__()
        self.path = Path(save_dir) / "metrics.csv"
        self.pending: list[dict[str, Any]] = []
        self.unwritten: dict[str, str] = {}

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return ""

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Does nothing: the run's folder holds its config."""

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        self.pending.append({**values, "step": step})

    @rank_zero_only
    def save(self) -> None:
        """Writes the rows that are not written yet; called by Lightning for every row."""
        with tolerate_write_errors(self.path.name, "its rows wait until there is room", self.unwritten):
            if self.pending:
                self._write()
                self.pending = []

    def _write(self) -> None:
        """Appends the rows; writes the file again if they have new columns."""
        found = []
        if self.path.is_file():
            with self.path.open(newline="") as file:
                found = next(csv.reader(file), [])
        columns = sorted({*found, *(name for row in self.pending for name in row)})
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        if columns != found:
            writer.writeheader()
            if found:
                with self.path.open(newline="") as file:
                    writer.writerows(csv.DictReader(file))
            writer.writerows(self.pending)
            atomic_write(self.path, text.getvalue())
            return
        writer.writerows(self.pending)
        size = self.path.stat().st_size
        try:
            with self.path.open("a", newline="") as file:
                file.write(text.getvalue())
        except OSError:
            os.truncate(self.path, size)
            raise

    def rows(self) -> int:
        """The number of rows so far, written or not."""
        self.save()
        written = len(self.path.read_text().splitlines()) - 1 if self.path.is_file() else 0
        return written + len(self.pending)

    def keep_rows(self, count: int) -> None:
        """Keeps the first `count` rows of the file, if there is one, and deletes the others."""
        if not count:
            self.path.unlink(missing_ok=True)
        elif self.path.is_file():
            atomic_write(self.path, "".join(self.path.read_text().splitlines(keepends=True)[: count + 1]))


def log_measurement(cfg: DictConfig, folder: Path) -> None:
    """Logs a measurement of eval.py as a W&B run: each JSON file of its folder as a table, each PNG as an image.

    The table of a file is its "rows", flat objects with equal keys; a file without them is one row itself.
    """
    logged = OmegaConf.masked_copy(cfg, [str(name) for name in cfg if name not in NOT_LOGGED])
    with wandb.init(
        project=cfg.project,
        name=f"{cfg.name}-{folder.name}",
        job_type="measurement",
        config=cast(dict[str, Any], OmegaConf.to_container(logged, resolve=True)),
        dir=folder,
        mode=wandb_mode(),
        settings=wandb_settings(),
    ) as run:
        for path in sorted(folder.glob("*.json")):
            content = json.loads(path.read_text())
            run.log({path.stem: wandb_table(content.get("rows", [content]))})
        run.log({path.stem: wandb.Image(str(path)) for path in sorted(folder.glob("*.png"))})
    print(f"W&B: {folder / 'wandb'}")


def finish_wandb(exit_code: int, interrupted: bool = False) -> None:
    """Ends the W&B run of this process, if there is one; one with an exit code other than 0 shows as failed."""
    try:
        if wandb.run is not None:
            wandb.finish(exit_code=exit_code)
    except OSError:
        if not interrupted:  # a signal to all processes of a job has ended W&B's as well
            raise


def wandb_table(rows: list[dict[str, Any]]) -> wandb.Table:
    """A W&B table of rows with equal keys."""
    columns: list[str | int] = list(rows[0]) if rows else []
    return wandb.Table(columns=columns, data=[list(row.values()) for row in rows])


def wandb_settings(**settings: Any) -> wandb.Settings:
    """W&B's settings for every run that is started here: silent, and its end waits at most `FINISH_TIMEOUT`.

    They hold an id, because WANDB_RUN_ID would merge the runs of a sweep, its comparison, and measurements.
    """
    if "finish_timeout" in wandb.Settings.model_fields:  # newer versions
        settings["finish_timeout"] = FINISH_TIMEOUT
    return wandb.Settings(silent=True, run_id=secrets.token_hex(4), **settings)


def wandb_mode() -> Mode:
    """The mode of W&B's runs: WANDB_MODE if set, else online where W&B accepts the user's key, offline elsewhere."""
    mode = os.environ.get("WANDB_MODE")
    if mode and mode != "online":
        return "offline" if mode == "dryrun" else cast(Mode, mode)
    url = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    stored = requests.utils.get_netrc_auth(url)
    key = os.environ.get("WANDB_API_KEY") or (stored[1] if stored else "")
    if not key:  # W&B's own error explains an explicit "online" without a login
        return "online" if mode else "offline"
    problem = wandb_problem(url, key)
    if problem:
        _report_offline(problem)
    return "offline" if problem else "online"


@functools.cache
def wandb_problem(url: str, key: str) -> str | None:
    """The reason why W&B at `url` cannot be used with this key; None if it can."""
    query = {"query": "query { viewer { id } }"}
    try:
        answer = requests.post(f"{url.rstrip('/')}/graphql", json=query, auth=("api", key), timeout=ANSWER_TIMEOUT)
        known = answer.ok and (answer.json().get("data") or {}).get("viewer")
    except requests.RequestException as error:
        return f"{url} cannot be reached ({type(error).__name__})"
    if not answer.ok and answer.status_code not in (401, 403):
        return f"{url} answers {answer.status_code} {answer.reason}"
    return None if known else f"{url} refuses the API key: log in again with `wandb login --relogin`"


@functools.cache
def _report_offline(problem: str) -> None:
    """Prints the warning, once per process."""
    print(f"W&B: {problem}; the run continues offline. {SYNC}", file=sys.stderr, flush=True)
