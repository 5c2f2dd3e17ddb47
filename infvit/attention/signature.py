"""The signatures of operators whose constructors pass **kwargs on to their bases."""

import inspect
from collections.abc import Callable
from typing import Any

from infvit.attention.layer import Attention


def constructor_signature(called: Callable[..., Any]) -> inspect.Signature:
    """`inspect.signature`; for a subclass of `Attention` that takes **kwargs, with the parameters of its bases."""
    parameters = dict(inspect.signature(called).parameters)
    bases = called.__mro__[1:] if inspect.isclass(called) and issubclass(called, Attention) else ()
    for base in bases:
        rest = next((name for name, p in parameters.items() if p.kind is p.VAR_KEYWORD), None)
        if rest is None:
            break
        del parameters[rest]
        for name, p in inspect.signature(base).parameters.items():
            parameters.setdefault(name, p if p.kind is p.VAR_KEYWORD else p.replace(kind=p.KEYWORD_ONLY))
    return inspect.Signature(sorted(parameters.values(), key=lambda p: p.kind))
