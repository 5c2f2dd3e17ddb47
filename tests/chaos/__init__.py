"""What must not be lost, tried: `python -m tests.chaos` runs every harness of this folder and prints one table.

A harness is a module of this folder with `arguments(parser)`, for options of its own, and `run(options)`, which yields
a `Fault` for each thing that it broke.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """Something that was broken on purpose, and what became of the run.

    Args:
        kind: in a few words; faults of one kind are a row of the table.
        lost: what did not survive, None if all did.
    """

    kind: str
    lost: str | None = None
