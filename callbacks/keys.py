"""Keys stay out of what a run leaves: a command that has one in its configuration is refused before it writes."""

import os
import re
import sys
from collections.abc import Iterator
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from callbacks.wandb_access import key_of_wandb

NAME = re.compile(r"(api_?key|secret|password|passwd|credentials?|(access|auth|hf|hub)_?token)$", re.IGNORECASE)

SHORTEST = 12
"""Characters of a value that nothing else can have by chance."""


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
    known |= {key for key in [key_of_wandb()] if key}

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
