"""What a process has done until now, as the system counts it: what works is told from what hangs by it."""

import os
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

BYTES = 16 * 2**20
"""Read or written, they count as a second of work: a file goes on where a slow disk takes a megabyte a second."""

TICKS = os.sysconf("SC_CLK_TCK")
"""Of the system's clock, in a second."""


def effort(besides: Collection[int] = ()) -> float:
    """Seconds of work of this process and of those it has started, but for `besides`: processor time and bytes moved.

    Where the system does not tell of other processes, on no Linux, it is this one's processor time.
    """
    times = os.times()
    seconds = times.user + times.system + times.children_user + times.children_system
    with suppress(OSError):
        lines = Path("/proc/self/io").read_text().splitlines()
        moved = dict(line.split(": ") for line in lines)
        seconds += (int(moved["rchar"]) + int(moved["wchar"])) / BYTES
    return seconds + sum(map(_of_family, _children(os.getpid(), besides)))


def _of_family(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has just ended
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS + sum(map(_of_family, _children(pid)))


def _children(pid: int, besides: Collection[int] = ()) -> list[int]:
    found: set[int] = set()
    for path in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found.update(map(int, path.read_text().split()))
    return sorted(found.difference(besides))
