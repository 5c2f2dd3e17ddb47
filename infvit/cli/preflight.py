"""The Hydra callback of every command: no secrets in the config, and a folder that can be written."""

import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from infvit.cli.config_errors import format_config_error
from infvit.cli.targets import values

SECRET_NAME = re.compile(r"(api_?key|secret|password|passwd|credentials?|(access|auth|hf|hub)_?token)$", re.IGNORECASE)

SHORTEST_SECRET = 12
"""Characters; a shorter value of the environment may occur in a config by chance."""

NEEDED = 2**20
"""Bytes that a run needs to start: its config and its first result."""


class Preflight(Callback):
    """Refuses a command before Hydra writes its config into the run's folder: it holds a secret, or the disk is full.

    Hydra turns exceptions of its callbacks into warnings, so that a refusal exits.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._check(config, lambda: config.hydra.run.dir)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._check(config, lambda: config.hydra.sweep.dir)

    def _check(self, config: DictConfig, folder: Any) -> None:
        for key in secrets_in(config):
            _refuse(
                f"{key} holds a secret, which config, logs and result.json of the run would show: leave it to the "
                "environment (WANDB_API_KEY) or to `wandb login`"
            )
        hydra = HydraConfig.instance()
        before = hydra.cfg
        hydra.set_config(config)  # as Hydra does after its callbacks; the folder's resolvers read it
        try:
            check_writable(Path(folder()))
        except OmegaConfBaseException as error:  # Hydra would resolve it again, which may take minutes
            _refuse(format_config_error(error))
        finally:
            hydra.cfg = before


def secrets_in(config: DictConfig) -> Iterator[str]:
    """The keys of secrets, known by the key's name or because a secret of the environment has that value."""
    known = {value for name, value in os.environ.items() if SECRET_NAME.search(name) and len(value) >= SHORTEST_SECRET}
    for key, value in values(OmegaConf.to_container(config, resolve=False)):
        if isinstance(value, str):
            if key.startswith("hydra.overrides."):
                key, _, value = value.partition("=")
            variables = re.findall(r"\$\{oc\.env:\s*([^},]+)", value)
            named = SECRET_NAME.search(key) and value not in ("", "null", "???")
            if named or any(map(SECRET_NAME.search, variables)) or any(secret in value for secret in known):
                yield key


def check_writable(folder: Path) -> None:
    """Exits if a file of `NEEDED` bytes cannot be written there; free space alone does not show a quota."""
    existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(bytes(NEEDED))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        _refuse(f"{folder} cannot be written ({error.strerror}): make room in {existing}, or give another folder")


def _refuse(reason: str | None) -> NoReturn:
    print(f"error: {reason}", file=sys.stderr)
    sys.exit(2)
