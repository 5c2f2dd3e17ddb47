"""Errors of Hydra and OmegaConf in one line: what was found, what is expected, and how to write it."""

import difflib
import re

from hydra.errors import (
    ConfigCompositionException,
    HydraException,
    InstantiationException,
    MissingConfigException,
    OverrideParseException,
)
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

MAX_KEYS = 15
"""Keys that are listed where none is similar to the one that was given."""

MAX_WORD = 200
"""Characters of a word, such as a value; longer words lose their middle."""


def format_config_error(error: BaseException) -> str | None:
    """The line for an error of Hydra or OmegaConf, None for any other error."""
    if isinstance(error, InstantiationException):
        return _instantiation(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = ", ".join(error.options or [])
        return f"{group or 'config'}={name} does not exist" + (f": expected one of {options}" if options else "")
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override or 'an empty argument'} cannot be read: write NAME=VALUE, and text with spaces, brackets "
            "or signs in quotes of its own, e.g. 'name=\"a b\"'"
        )
    if isinstance(error, OmegaConfBaseException):
        missing = re.search(r"Missing mandatory value: (\S+)", str(error))
        if missing:
            return f"{missing[1]} has no value: give {missing[1]}=VALUE"
        key = f"{error.full_key}: " if error.full_key else ""
        message = (error.msg or str(error)).split("\n    full_key")[0]
        return key + message.removeprefix("UsageError raised while resolving interpolation: ")
    if isinstance(error, ConfigCompositionException) and (line := _unknown_key(error)):
        return line
    if isinstance(error, HydraException):
        if twice := re.match(r"Multiple values for (\S+)\.", str(error)):  # Hydra's remedy is for YAML
            return f"{twice[1]} is chosen already: write {twice[1]}=OPTION without +"
        return f"{error} ({error.__cause__})" if error.__cause__ else str(error)
    return None


def _unknown_key(error: ConfigCompositionException) -> str | None:
    """For a key that is not in the config: its neighbours there."""
    cause, added = error.__cause__, re.search(r"use (\+.*)", str(error))
    parent = getattr(cause, "parent_node", None)
    key, full_key = str(getattr(cause, "key", "")), str(getattr(cause, "full_key", ""))
    if added is None or not full_key or not isinstance(parent, DictConfig):
        return None
    names = [str(name) for name in parent]
    similar = difflib.get_close_matches(key.lower(), names, 3, 0.6)
    if similar:
        expected = f"did you mean {' or '.join(full_key.removesuffix(key) + name for name in similar)}?"
    else:
        expected = f"expected one of {', '.join(names[:MAX_KEYS])}{', …' * (len(names) > MAX_KEYS)}"
    adds = f" ({added[1]} adds it)" if "_target_" in names else ""  # elsewhere nothing would read it
    return f"{full_key} is not a config key: {expected}{adds}"


def _instantiation(error: InstantiationException) -> str:
    """For an object whose class or function refuses its arguments."""
    text, cause = str(error), error.__cause__
    place, target = (re.search(pattern, text) for pattern in (r"full_key: (\S+)", r"target '(.*?)'"))
    if place is None or target is None or cause is None:
        return text
    reason = str(cause) if isinstance(cause, ValueError) and str(cause) else f"{type(cause).__name__}: {cause}"
    return f"{place[1]} cannot be made by {target[1]}: {reason}"


def printable_line(text: str) -> str:
    """The text on one line: control characters are escaped, and very long words lose their middle."""
    words = [f"{w[: MAX_WORD // 2]}…{w[-MAX_WORD // 4 :]}" if len(w) > MAX_WORD else w for w in text.split()]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(words))
