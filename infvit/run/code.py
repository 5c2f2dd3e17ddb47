"""The identity of the code that computes a run's result: a hash of syntax trees, without comments and docstrings."""

import ast
import functools
import hashlib
import importlib.util
import pkgutil
import re
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

LIBRARIES = [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]

EMPTY = re.compile(r"\w+=\[\], |(, )?\w+=\[\]")
"""Fields of a syntax tree that some versions of Python write and others leave out."""


def code_hash(names: Iterable[str]) -> str:
    """Eight hexadecimal digits of the modules that define what has these full names, and of all that they import.

    Installed packages and the standard library do not count. `from package import name` counts the module that defines
    the name: a package that collects operators does not make each depend on all. What does not exist counts nothing.
    """
    found: dict[str, str] = {}
    waiting = [part for name in names for part in _definition(*name.rpartition(".")[::2])]
    while waiting:
        name = waiting.pop()
        if name not in found and (module := _own(name)):
            found[name] = module[1]
            waiting += [part for source, inner, _ in _imports(name) for part in _definition(source, inner)]
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:8]


@functools.cache
def _own(name: str) -> tuple[ast.Module, str, str] | None:
    """A module's syntax tree, code, and package; None if it is installed, of the standard library, or not there."""
    top = name.partition(".")[0]
    if top != name and _own(top) is None:  # not even imported
        return None
    try:
        spec = importlib.util.find_spec(name)
    except Exception:  # whatever the import of its package raises: making the object reports it
        return None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return None
    path = Path(str(spec.origin) if spec.has_location else next(iter(spec.submodule_search_locations or ())))
    if {"site-packages", "dist-packages"} & set(path.parts) or any(map(path.is_relative_to, LIBRARIES)):
        return None
    content = path.read_bytes() if path.is_file() else b""  # a folder is a package without a file
    package = name.rpartition(".")[0] if spec.submodule_search_locations is None else name
    try:
        tree = ast.parse(content)
    except (SyntaxError, ValueError):  # compiled, or a mistake that its import reports
        return ast.Module([], []), hashlib.sha256(content).hexdigest(), package
    for node in ast.walk(tree):
        for statements in (part for _, part in ast.iter_fields(node) if isinstance(part, list)):
            statements[:] = [statement for statement in statements if not _is_docstring(statement)]
    return tree, EMPTY.sub("", ast.dump(tree)), package


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _imports(module: str) -> Iterator[tuple[str, str, str]]:
    """(module, name in it, name here) of every import; `import a.b` is a and a.b, without a name in them."""
    tree, _, package = _own(module) or (ast.Module([], []), "", "")
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                parts = alias.name.split(".")
                for count in range(len(parts), 0, -1):
                    yield ".".join(parts[:count]), "", alias.asname or parts[0]
        elif isinstance(node, ast.ImportFrom):
            above = package.rsplit(".", node.level - 1)[0] if node.level else ""
            for alias in node.names:
                yield ".".join(filter(None, (above, node.module))), alias.name, alias.asname or alias.name


@functools.cache
def _definition(source: str, name: str) -> tuple[str, ...]:
    """The modules that define a name of `source`, a module that may import it, or a class in one."""
    while source and _own(source) is None:
        source, _, name = source.rpartition(".")
    if not source or name in ("", "*"):
        return (source,)
    for theirs, original, here in _imports(source):
        if here == name and (theirs, original) != (source, name):
            return _definition(theirs, original)
    tree, _, _ = _own(source) or (ast.Module([], []), "", "")
    stored = {getattr(n, "id", "") for n in ast.walk(tree) if isinstance(getattr(n, "ctx", None), ast.Store)}
    if name in stored | {getattr(statement, "name", "") for statement in tree.body}:
        return (source,)
    try:  # a module, or made by the import, as infvit.attention finds operators
        made = pkgutil.resolve_name(f"{source}.{name}")
    except Exception:  # whatever an import raises: making the object reports it
        return (source,)
    return (str(getattr(made, "__module__", None) or getattr(made, "__name__", source)),)
