"""The values of a config against the types that classes and functions declare, before any of them is called."""

import functools
import inspect
import json
import math
import re
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import SchemaError

from infvit.attention.signature import constructor_signature
from infvit.cli.targets import check_targets, importable
from infvit.errors import UsageError

ANY_CLASS = ConfigDict(arbitrary_types_allowed=True)

AN_OBJECT = "an object, named by _target_"

REFERENCE = re.compile(r"\$\{([\w.]+)\}+$")
"""The end of `${size.depth}` and of `${oc.select:model.depth,${size.depth}}`."""


def check_config(cfg: DictConfig, *parts: str) -> None:
    """Raises UsageError for the first value that its class or function does not accept by its signature.

    Args:
        cfg: as composed.
        parts: keys of what will be instantiated; other keys may refer to values that do not exist.
    """
    check_targets(cfg)
    for part in parts:
        if not isinstance(OmegaConf.select(cfg, part), DictConfig):
            raise UsageError(f"{part}={_shown(OmegaConf.select(cfg, part))}: expected {AN_OBJECT}")
    raw = OmegaConf.to_container(cfg, resolve=False)
    for part in parts:
        resolved = OmegaConf.to_container(OmegaConf.select(cfg, part), resolve=True, throw_on_missing=True)
        for key, node in _calls(resolved, part):
            target = node["_target_"]
            called, why = importable(target)
            if not callable(called):
                expected = "the full name of one that is installed or on PYTHONPATH"
                raise UsageError(f"{key}._target_={target} is not a class or function{why}: expected {expected}")
            arguments = {name: value for name, value in node.items() if not str(name).startswith("_")}
            check_call(called, arguments, functools.partial(_typed_key, raw, key))


def check_call(called: Callable[..., Any], arguments: Mapping[str, Any], key_of: Callable[[str], str]) -> None:
    """Raises UsageError for the first argument that a class or function does not accept by its signature.

    Args:
        called: class or function.
        arguments: by name, as a config holds them; objects are accepted.
        key_of: name of an argument → its config key.
    """
    function: Any = called.__init__ if inspect.isclass(called) else called
    try:
        parameters = constructor_signature(called).parameters
        declared = {name: p.annotation for name, p in parameters.items() if p.annotation is not p.empty}
        hints = declared | get_type_hints(function)
    except (NameError, TypeError, ValueError):  # built in, or hints for type checkers alone
        return
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name, value in arguments.items():
        if name not in parameters and not takes_any:
            known = ", ".join(parameters)
            found = f"{key_of(name)}={_shown(value)}: {called.__name__}"
            raise UsageError(f"{found} does not take {name}: expected one of {known}")
        if isinstance(value, float) and math.isnan(value):
            raise UsageError(f"{key_of(name)}=nan is not a number")
        if name in hints and not _has_object(value) and (expected := _expected(hints[name], value)):
            raise UsageError(f"{key_of(name)}={_shown(value)}: {called.__name__} expects {expected}")


def _expected(hint: Any, value: Any) -> str:
    """What the type accepts, in pydantic's words; empty if it accepts the value.

    By its strict mode for JSON: a list is a tuple, and true is not 1.
    """
    text = json.dumps([value], default=str)
    words = []
    for member in _members(hint):
        try:  # within a tuple, because pydantic takes no settings for a dataclass alone
            one: Any = types.GenericAlias(tuple, (member,))
            TypeAdapter(one, config=ANY_CLASS).validate_json(text, strict=True)
        except ValidationError as error:
            found = error.errors()[0]
            known = found["type"] not in ("needs_python_object", "callable_type")
            words.append(found["msg"].removeprefix("Input should be ") if known else AN_OBJECT)
        except SchemaError:  # a Protocol: no value of a config is an instance
            words.append(AN_OBJECT)
        except PydanticUserError:  # a hint that only type checkers understand
            return ""
        else:
            return ""
    return " or ".join(dict.fromkeys(words))


def _calls(node: Any, key: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """(key, node) of everything that will be instantiated."""
    if _is_call(node):
        yield key, node
    if isinstance(node, dict | list):
        for name, value in node.items() if isinstance(node, dict) else enumerate(node):
            yield from _calls(value, f"{key}.{name}")


def _is_call(node: Any) -> bool:
    return isinstance(node, dict) and "_target_" in node


def _has_object(value: Any) -> bool:
    """Whether the value or an item of it is an object, or becomes one whose type the config does not know."""
    if isinstance(value, list):
        return any(map(_has_object, value))
    return _is_call(value) or not isinstance(value, dict | str | int | float | None)


def _typed_key(raw: Any, key: str, name: str) -> str:
    """The key under which a user sets an argument: `${size.depth}` refers to another key than its own."""
    key = f"{key}.{name}"
    for _ in range(9):  # OmegaConf refuses circular references before
        value, names = raw, key.split(".")
        while names and isinstance(value, dict):
            value = value.get(names.pop(0))
        reference = REFERENCE.search(value) if isinstance(value, str) else None
        if reference is None:
            return key
        key = ".".join([reference[1], *names])
    return key


def _members(hint: Any) -> list[Any]:
    if get_origin(hint) in (Union, types.UnionType):
        return [member for part in get_args(hint) for member in _members(part)]
    return [hint]


def _shown(value: Any) -> str:
    """The value as it is written in a config."""
    return json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, str) or not value else value
