"""What Hydra and OmegaConf complain about over many lines, in one: what was found, and what could stand there."""

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

SHOWN = 15
"""Settings that are listed where none looks like the one that was meant."""

WORD = 200
"""Characters of one word of a line, such as a value: longer ones lose their middle."""

REWORDED = (
    (r"Multiple values for (\S+)\. .*: ([^']+)'.*", r"\1 is chosen already: write \1=\2 without +"),
    (r"(\S+) appears more than once in the final defaults list", r"\1 is chosen already: write \1=OPTION without +"),
    (r"force-add of config groups is not supported: '\+\+(.*)'", r"\1 chooses a group: write +\1, or \1 without +"),
    (
        r"Ambiguous value for argument '((.*?)=(.*?))'\n.*",
        r"\1 has several values: add -m for a run with each, or write '\2=[\3]' for a list of them",
    ),
    (r"Sweep parameters '(.*)' requires --multirun", r"\1 is a sweep: add -m for a run with each value"),
    (
        r"Could not override '(.*)'\.\nNo match in the defaults list\..* (\+.*)",
        r"\1 is not among what is chosen so far: write \2 to add it",
    ),
    (
        r"Could not append to config\. An item is already at '(.*?)'\..*",
        r"\1 exists already: write \1=VALUE without +",
    ),
    (r"Could not delete '(.*)'\. No match.*", r"~\1 takes out what is not chosen: leave it out"),
)
"""Hydra's words, and what a person can do about it."""


def format_config_error(error: BaseException) -> str | None:
    """The line for an error of Hydra's or OmegaConf's, None for any other."""
    if isinstance(error, InstantiationException):
        return _not_made(error)
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group, _, name = error.missing_cfg_file.rpartition("/")
        options = list(error.options or [])
        return f"{group or 'config'}={name} does not exist" + (
            f": expected one of {', '.join(options)}" * bool(options)
        )
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override or 'an empty argument'} cannot be read: write NAME=VALUE, and text with spaces, brackets "
            "or signs in quotes of its own, e.g. 'name=\"a b\"'"
        )
    missing = re.search(r"Missing mandatory value: (\S+)", str(error))
    if isinstance(error, OmegaConfBaseException) and missing:
        return f"{missing[1]} has no value: give {missing[1]}=VALUE"
    if isinstance(error, ConfigCompositionException):
        unknown = _no_setting(error)
        if unknown:
            return unknown
    if isinstance(error, OmegaConfBaseException):
        place = f"{error.full_key}: " if error.full_key else ""
        said = (error.msg or str(error)).split("\n    full_key")[0]
        return place + said.removeprefix("UsageError raised while resolving interpolation: ")
    if isinstance(error, HydraException):
        text = f"{error} ({error.__cause__})" if error.__cause__ else str(error)
        for theirs, ours in REWORDED:
            text = re.sub(f"^{theirs}$", ours, text, flags=re.DOTALL)
        return text
    return None


def _no_setting(error: ConfigCompositionException) -> str | None:
    """For a name that is not in the configuration: the names beside it."""
    cause, added = error.__cause__, re.search(r"use (\+.*)", str(error))
    parent = getattr(cause, "parent_node", None)
    key, full_key = str(getattr(cause, "key", "")), str(getattr(cause, "full_key", ""))
    if added is None or not full_key or not isinstance(parent, DictConfig):
        return None
    names = [str(name) for name in parent]
    near = difflib.get_close_matches(key.lower(), names, 3, 0.6)
    if near:
        meant = f"did you mean {' or '.join(full_key.removesuffix(key) + name for name in near)}?"
    else:
        meant = f"expected one of {', '.join(names[:SHOWN])}{', …' * (len(names) > SHOWN)}"
    return f"{full_key} is no setting: {meant} ({added[1]} adds it)"


def _not_made(error: InstantiationException) -> str:
    """For a part whose class or function refuses what it is given."""
    text, cause = str(error), error.__cause__
    place, target = (re.search(pattern, text) for pattern in (r"full_key: (\S+)", r"target '(.*?)'"))
    if place is None or target is None or cause is None:
        return text
    said = str(cause) if isinstance(cause, ValueError) and str(cause) else f"{type(cause).__name__}: {cause}"
    return f"{place[1]} cannot be made by {target[1]}: {said}"


def joined(text: str) -> str:
    """On one line, without what a terminal would not show or obey, and without the middle of endless words."""
    words = [f"{w[: WORD // 2]}…{w[-WORD // 4 :]}" if len(w) > WORD else w for w in text.split()]
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in " ".join(words))
