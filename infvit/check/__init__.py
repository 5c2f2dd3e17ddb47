"""Checks an attention, a user's own too, on random tokens: what a comparison relies on, and what it claims.

    from infvit.check import check
    print(check(MyAttention, window=8))         # in a terminal: python -m infvit.check my_package.MyAttention window=8

A class is enough: `__init__(self, dim, num_heads)` and `forward(x)`, (B, N, D) → (B, N, D). What it may have besides:

| member | says |
|---|---|
| `supported_masks`, or `key_padding_mask`, `attn_mask`, `is_causal` of its forward | the masks that it takes |
| `permutation_equivariant = True` | permuted tokens come out as before, permuted |
| `flops(N)` | FLOPs of one image of N tokens, 2 per multiply-add of its matrix products |
| `forward_class_token(x)` | the first token alone, (B, 1, D), without computing the others |
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from infvit.attention import LinearInfSA, SoftmaxAttention
from infvit.check import checks
from infvit.check.checks import Failed, NoVerdict, Subject, first_line
from infvit.check.checks import fits_in_model as fits_in_model
from infvit.check.scaling import Row, time_and_memory
from infvit.errors import UsageError
from infvit.tables.table import Column, Table, wrapped

OK, FAILED, NONE = "ok", "FAILED", "–"
FOUND_WIDTH = 53
"""Characters of the last column, which make 80 with the others."""


@dataclass(frozen=True)
class Line:
    """The outcome of one check: status "ok", "FAILED", or "–" for facts and what is left out; and what was found."""

    name: str
    status: str
    found: str


@dataclass(frozen=True)
class Report:
    """The outcome of `check`; its text is a page of 80 columns."""

    title: str
    lines: list[Line]
    scaling: Table[Row] | None = None

    @property
    def failed(self) -> list[Line]:
        """The lines of the checks that failed."""
        return [line for line in self.lines if line.status == FAILED]

    def __str__(self) -> str:
        columns: list[Column[Line]] = [
            Column("check", lambda line: line.name, left=True),
            Column("", lambda line: line.status, left=True),
            Column("found", lambda line: "\n".join(wrapped(line.found, FOUND_WIDTH, indent=0)), left=True),
        ]
        count = f"{len(self.failed)} of {len(self.lines)} checks failed" if self.failed else "no check failed"
        parts = [Table(columns, self.lines, self.title).text(), self.scaling.text() if self.scaling else "", count]
        return "\n\n".join(filter(None, parts))


def check(
    attention: type[nn.Module], fast: bool = False, dim: int = 32, num_heads: int = 4, **options: object
) -> Report:
    """Runs every check on `attention(dim, num_heads=num_heads, **options)`, on a GPU if there is one.

    Args:
        attention: a class of layers.
        fast: leaves out the compiler, and time and memory against the number of tokens.

    Raises:
        UsageError: if no layer can be made.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    make = functools.partial(attention, **options)
    subject = Subject(make, dim, num_heads, device)
    arguments = ", ".join([f"{dim}", f"num_heads={num_heads}", *(f"{k}={v}" for k, v in options.items())])
    title = f"{attention.__module__}.{attention.__qualname__}({arguments}), {device}"
    with torch.random.fork_rng(devices=[]):
        try:
            count = sum(p.numel() for p in subject.layer().parameters())
        except TypeError as error:
            raise UsageError(f"{title} cannot be made: {error}") from error
        found = [_line(name, run, subject) for name, run in _checks(subject, fast).items()]
        contestants: dict[str, Callable[..., nn.Module]] = {
            attention.__name__: make,
            "softmax": SoftmaxAttention,
            "linear_infsa": LinearInfSA,
        }
        measured = None if fast else time_and_memory(contestants, device)
        return Report(f"{title}, {count:,} parameters", found, measured)


def _checks(subject: Subject, fast: bool) -> dict[str, Callable[[Subject], str]]:
    found: dict[str, Callable[[Subject], str]] = {
        "shapes": checks.shapes,
        "images": checks.images,
        "token order": checks.permutation,
    }
    for mask in checks.MASKS:
        found[mask] = getattr(checks, mask) if mask in subject.masks else _unclaimed
    found |= {"NaN": checks.nan, "degenerate": checks.degenerate, "class token": checks.class_token}
    for autocast in (False, True):
        for dtype in checks.TOLERANCES:
            name = str(dtype).removeprefix("torch.")
            if not autocast or torch.finfo(dtype).bits == 16:
                found["autocast " * autocast + name] = functools.partial(
                    checks.precision, dtype=dtype, autocast=autocast
                )
    found |= {"meta": checks.meta, "gradients": checks.gradients, "FLOPs": checks.flops}
    return found if fast else found | {"torch.compile": checks.compiled}


def _unclaimed(_: Subject) -> str:
    raise NoVerdict("not claimed")


def _line(name: str, run: Callable[[Subject], str], subject: Subject) -> Line:
    try:
        return Line(name, OK, run(subject))
    except NoVerdict as fact:
        return Line(name, NONE, str(fact))
    except UsageError as error:  # a mask that is refused is not ignored
        return Line(name, NONE if name in checks.MASKS else FAILED, str(error))
    except Failed as error:
        return Line(name, FAILED, str(error))
    except Exception as error:  # whatever the attention raises
        return Line(name, NONE if "not implemented for" in str(error) else FAILED, first_line(error))
