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
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from infvit.attention import LinearInfSA, SoftmaxAttention
from infvit.check import checks
from infvit.check.checks import Check, Failed, NoVerdict, Subject, first_line
from infvit.check.checks import fits_in_model as fits_in_model
from infvit.check.scaling import Makers, Row, time_and_memory
from infvit.errors import UsageError
from infvit.tables.table import Column, Table, wrapped

FAILED, NO_VERDICT = "FAILED", "–"
FOUND_WIDTH = 53
"""Characters of the last column, which make 80 with the others."""


class Line(NamedTuple):
    """The outcome of one check: status "ok", "FAILED", or "–" for facts and what is left out; and what was found."""

    name: str
    status: str
    found: str


COLUMNS: list[Column[Line]] = [
    Column("check", lambda line: line.name, left=True),
    Column("", lambda line: line.status, left=True),
    Column("found", lambda line: "\n".join(wrapped(line.found, FOUND_WIDTH, indent=0)), left=True),
]


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
        count = f"{len(self.failed)} of {len(self.lines)} checks failed" if self.failed else "no check failed"
        scaling = [self.scaling.text()] if self.scaling else []
        return "\n\n".join([Table(COLUMNS, self.lines, self.title).text(), *scaling, count])


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
    device, make = "cuda" if torch.cuda.is_available() else "cpu", functools.partial(attention, **options)
    subject = Subject(make, dim, num_heads, device)
    arguments = ", ".join(f"{name}={value}" for name, value in {"num_heads": num_heads, **options}.items())
    title = f"{attention.__module__}.{attention.__qualname__}({dim}, {arguments})"
    with torch.random.fork_rng(devices=[]):
        try:
            count = sum(p.numel() for p in subject.layer().parameters())
        except TypeError as error:
            raise UsageError(f"{title} cannot be made: {error}") from error
        lines = [_line(name, run, subject) for name, run in _checks(subject.masks, fast).items()]
        makers: Makers = {attention.__name__: make, "softmax": SoftmaxAttention, "linear_infsa": LinearInfSA}
        scaling = None if fast else time_and_memory(makers, device)
    return Report(f"{title}, {count:,} parameters, {device}", lines, scaling)


def _checks(masks: list[str], fast: bool) -> dict[str, Check]:
    found: dict[str, Check] = {"shapes": checks.shapes, "images": checks.images, "token order": checks.token_order}
    found |= {mask: getattr(checks, mask) if mask in masks else _unclaimed for mask in checks.MASKS}
    found |= {"NaN": checks.nan, "degenerate": checks.degenerate, "class token": checks.class_token}
    for autocast in ("", "autocast "):
        for dtype in [*checks.TOLERANCES][bool(autocast) :]:
            name = f"{autocast}{dtype}".replace("torch.", "")
            found[name] = functools.partial(checks.precision, dtype=dtype, autocast=bool(autocast))
    found |= {"gradients": checks.gradients, "FLOPs": checks.flops}
    return found if fast else found | {"torch.compile": checks.compiled}


def _unclaimed(_: Subject) -> str:
    raise NoVerdict("not claimed")


def _line(name: str, run: Check, subject: Subject) -> Line:
    try:
        return Line(name, "ok", run(subject))
    except (Failed, NoVerdict, UsageError) as outcome:
        refused = isinstance(outcome, UsageError) and name in checks.MASKS  # a mask that is refused is not ignored
        return Line(name, NO_VERDICT if refused or isinstance(outcome, NoVerdict) else FAILED, str(outcome))
    except Exception as error:  # whatever the attention raises; torch lacks some operations in half precision
        return Line(name, NO_VERDICT if "not implemented for" in str(error) else FAILED, first_line(error))
