"""What a process has done until now, as the system counts it: what works is told from what hangs by it."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

BYTES = 16 * 2**20
"""Read or written, they count as a second of work: a file goes on where a slow disk takes a megabyte a second."""

TICKS = os.sysconf("SC_CLK_TCK")
"""Of the system's clock, in a second."""


class Effort(NamedTuple):
    """In seconds, both: of processors, and of bytes read and written."""

    worked: float = 0.0
    moved: float = 0.0

    def __add__(self, other: "Effort") -> "Effort":  # type: ignore[override]
        return Effort(self.worked + other.worked, self.moved + other.moved)

    def __sub__(self, other: "Effort") -> "Effort":
        return Effort(self.worked - other.worked, self.moved - other.moved)


def effort(besides: Collection[int] = ()) -> Effort:
    """Of this process and of those it has started, but for `besides`.

    Where the system does not tell of other processes, on no Linux, it is this one's processor time.
    """
    times = os.times()
    own = Effort(times.user + times.system + times.children_user + times.children_system, _moved("self"))
    return sum(map(_of_family, _children(os.getpid(), besides)), own)


def _of_family(pid: int) -> Effort:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return Effort()
    own = Effort(sum(map(int, fields[11:15])) / TICKS, _moved(pid))
    return sum(map(_of_family, _children(pid)), own)


def _moved(process: int | str) -> float:
    with suppress(OSError):
        lines = Path(f"/proc/{process}/io").read_text().splitlines()
        found = {name: int(number) for name, number in (line.split(": ") for line in lines)}
        read = max(found["rchar"], found["read_bytes"])  # of files that are mapped the system counts the latter alone
        return (read + found["wchar"]) / BYTES
    return 0.0


def _children(pid: int, besides: Collection[int] = ()) -> list[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found.update(map(int, path.read_text().split()))
    return sorted(found.difference(besides))
