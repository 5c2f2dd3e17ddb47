"""The values of a configuration beside the types that classes and functions declare, before any of them is called."""

import functools
import inspect
import json
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import typeguard
from omegaconf import DictConfig, OmegaConf

from infvit.attention.signature import constructor_signature
from infvit.cli.targets import led_to
from infvit.errors import UsageError

WORDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text (a number in quotes)"}

OBJECT = "an object, named by _target_"

REFERENCE = re.compile(r"\$\{([\w.]+)\}+$")
"""The end of `${size.depth}` and of `${oc.select:model.depth,${size.depth}}`."""


def check_values(cfg: DictConfig, *parts: str) -> None:
    """Raises UsageError for the first value of another type than its class or function declares, or of no use to it.

    What they declare is not repeated anywhere: it is read off their signatures.

    Args:
        cfg: as composed.
        parts: the names of what will be made; what else there is may refer to what is not there.
    """
    for part in parts:
        if not isinstance(OmegaConf.select(cfg, part), DictConfig):
            raise UsageError(f"{part}={_shown(OmegaConf.select(cfg, part))}: expected {OBJECT}")
    raw = OmegaConf.to_container(cfg, resolve=False)
    for place, node in (call for part in parts for call in _calls(_resolved(OmegaConf.select(cfg, part)), part)):
        target = node["_target_"]
        called = led_to(target) if isinstance(target, str) else None
        if not callable(called):
            raise UsageError(f"{place}._target_={target} is no class or function: expected its full name")
        for flag in ("_partial_", "_recursive_"):
            if not isinstance(node.get(flag, False), bool):
                raise UsageError(f"{place}.{flag}={_shown(node[flag])}: expected true or false")
        given = {name: value for name, value in node.items() if not str(name).startswith("_")}
        check_call(called, given, functools.partial(_said, raw, place))


def check_call(called: Callable[..., Any], given: Mapping[str, Any], said: Callable[[str], str]) -> None:
    """As `check_values`, for one call.

    Args:
        called: class or function.
        given: arguments by name.
        said: the name in the configuration of an argument.
    """
    function: Any = called.__init__ if inspect.isclass(called) else called
    try:
        parameters = constructor_signature(called).parameters
        declared = {name: p.annotation for name, p in parameters.items() if p.annotation is not p.empty}
        hints = declared | get_type_hints(function)
    except (NameError, TypeError, ValueError):  # built in, or hints that are for type checkers alone
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in given.items():
        if name not in parameters and not takes_any:
            known = ", ".join(parameters)
            raise UsageError(
                f"{said(name)}={_shown(value)}: {called.__name__} takes no {name}: expected one of {known}"
            )
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{said(name)}=nan is no value to compute with: expected {_words(hints.get(name, float))}")
        if name in hints and not _made_later(value) and not _fits(value, hints[name]):
            raise UsageError(f"{said(name)}={_shown(value)}: {called.__name__} expects {_words(hints[name])}")


def _calls(node: Any, place: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """(place, node) of all that would be called."""
    if isinstance(node, dict):
        if _is_call(node):
            yield place, node
        for name, value in node.items():
            yield from _calls(value, f"{place}.{name}")
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _calls(value, f"{place}.{index}")


def _resolved(part: DictConfig) -> Any:
    return OmegaConf.to_container(part, resolve=True, throw_on_missing=True)


def _said(raw: Any, place: str, name: str) -> str:
    """Where the value of an argument of the object at a place is said: `${size.depth}` stands for another place."""
    place = f"{place}.{name}"
    for _ in range(9):  # a circle has been refused before
        value, names = raw, place.split(".")
        while names and isinstance(value, dict):
            value = value.get(names.pop(0))
        other = REFERENCE.search(value) if isinstance(value, str) else None
        if other is None:
            return place
        place = ".".join([other[1], *names])
    return place


def _is_call(node: Any) -> bool:
    return isinstance(node, dict | DictConfig) and "_target_" in node


def _made_later(value: Any) -> bool:
    """Whether an object will stand in its place, whose type no text knows."""
    return any(map(_made_later, value)) if isinstance(value, list) else _is_call(value)


def _fits(value: Any, hint: Any) -> bool:
    if isinstance(value, bool) and not {bool, Any, object} & set(_members(hint)):
        return False  # Python's bool is an int
    candidates = [value, tuple(value)] if isinstance(value, list) else [value]
    every = typeguard.CollectionCheckStrategy.ALL_ITEMS
    for candidate in candidates:
        try:
            typeguard.check_type(candidate, hint, collection_check_strategy=every)
            return True
        except typeguard.TypeCheckError:
            continue
    return False


def _members(hint: Any) -> list[Any]:
    """The alternatives of a union."""
    if get_origin(hint) in (Union, types.UnionType):
        return [member for part in get_args(hint) for member in _members(part)]
    return [hint]


def _words(hint: Any) -> str:
    """ "a whole number or null": what a person would write."""
    members = _members(hint)
    kinds = [_kind(member) for member in members if member is not type(None)]
    return " or ".join(dict.fromkeys(kinds + ["null"] * (type(None) in members)))


def _kind(hint: Any) -> str:
    if hint in WORDS:
        return WORDS[hint]
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    if get_origin(hint) in (list, tuple) or getattr(get_origin(hint), "__name__", "") == "Sequence":
        inner = dict.fromkeys(_words(part) for part in get_args(hint) if part is not ...)
        return f"a list [...] of {' and '.join(inner)}"
    name = getattr(hint, "__name__", None) or str(hint).replace("typing.", "")
    return OBJECT if name == "Callable" or inspect.isclass(hint) else name


def _shown(value: Any) -> str:
    """As it is written in a configuration."""
    return json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) or not value else value
