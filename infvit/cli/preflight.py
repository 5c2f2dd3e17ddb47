"""Keys stay out of what a run leaves: a command that has one in its configuration is refused before it writes."""

import contextlib
import netrc
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from infvit.cli.config_errors import format_config_error

NAME = re.compile(r"(api_?key|secret|password|passwd|credentials?|(access|auth|hf|hub)_?token)$", re.IGNORECASE)

SHORTEST = 12
"""Characters of a value that nothing else can have by chance."""

ROOM = 2**20
"""Bytes without which no run begins: its configuration, and its first result."""


class NoKeys(Callback):
    """Before Hydra writes the configuration into the run's folder. Its callbacks' exceptions become warnings, so the
    refusal is an exit.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        self._refuse(config)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._refuse(config)

    def _refuse(self, config: DictConfig) -> None:
        for place in keys_in(config):
            print(
                f"error: {place} holds a key, which config, logs and result.json of the run would show: leave it to "
                "the environment (WANDB_API_KEY) or to `wandb login`",
                file=sys.stderr,
            )
            sys.exit(2)


def keys_in(config: DictConfig) -> Iterator[str]:
    """The places of values that are keys, by their names or because the environment has them under such a name."""
    known = {value for name, value in os.environ.items() if NAME.search(name) and len(value) >= SHORTEST}
    known |= {key for key in [wandb_api_key()] if key}

    def walk(node: Any, place: str) -> Iterator[str]:
        if isinstance(node, dict | list):
            for name, value in node.items() if isinstance(node, dict) else enumerate(node):
                yield from walk(value, f"{place}.{name}" if place else str(name))
        elif isinstance(node, str) and node:
            if place.startswith("hydra.overrides."):
                place, _, node = node.partition("=")
            asked = re.findall(r"\$\{oc\.env:\s*([^},]+)", node)
            named = NAME.search(place) and node not in ("", "null", "???")
            if named or any(NAME.search(name) for name in asked) or any(key in node for key in known):
                yield place

    return walk(OmegaConf.to_container(config, resolve=False), "")


def wandb_api_key() -> str | None:
    """The W&B API key of this user, from WANDB_API_KEY or netrc; None if there is none."""
    key = os.environ.get("WANDB_API_KEY")
    with contextlib.suppress(OSError, netrc.NetrcParseError):
        entry = netrc.netrc(os.environ.get("NETRC")).authenticators(urlparse(wandb_url()).hostname or "")
        key = key or (entry[2] if entry else None)
    return key or None


def wandb_url() -> str:
    """The address of W&B's server."""
    return os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")


class Room(Callback):
    """Refuses a command whose folder has no room, before Hydra leaves half a configuration there.

    Exceptions of Hydra's callbacks become warnings, so the refusal is an exit.
    """

    def on_run_start(self, config: DictConfig, **_: Any) -> None:
        hydra = HydraConfig.instance()
        before = hydra.cfg
        hydra.set_config(config)  # Hydra does so behind this, and the folder's name may ask for it
        try:
            folder = Path(config.hydra.run.dir)
        except OmegaConfBaseException as error:  # Hydra would ask once more, and the answer may take minutes
            print(f"error: {format_config_error(error)}", file=sys.stderr)
            sys.exit(2)
        finally:
            hydra.cfg = before
        self._refuse(folder)

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        self._refuse(Path(config.hydra.sweep.dir))

    def _refuse(self, folder: Path) -> None:
        existing = next(path for path in (folder.resolve(), *folder.resolve().parents) if path.is_dir())
        try:
            with tempfile.TemporaryFile(dir=existing) as file:  # what is free says nothing of a quota
                file.write(bytes(ROOM))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            print(
                f"error: {folder} cannot be written ({error.strerror}): make room in {existing}, or give another "
                "folder",
                file=sys.stderr,
            )
            sys.exit(2)
