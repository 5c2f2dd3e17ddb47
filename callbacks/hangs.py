"""Which of a job's processes hangs, is stopped or is gone: told from the beats that `callbacks.hang_watchdog` sends."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path

from callbacks.effort import Effort

END = 2**31
"""The batch behind the last one: processes may have different numbers of them in evaluation."""


class Point(IntEnum):
    """Of a batch, in their order."""

    FETCHES = 0
    STARTS = 1
    RUNS_BACKWARD = 2
    HAS_RUN_BACKWARD = 3
    UPDATES = 4


class Watched(IntEnum):
    """What of a process must show within its patience."""

    EFFORT = 0
    """Some work: it may take as long as it likes while no other waits for it."""
    STEP = 1
    """The next position."""


IDLE = 0.03
"""Of its patience: a process that works for less of it does nothing. What W&B and the beats do is below."""

ADVICE = "go on with the same command and resume=auto"
ALL_STOP = f"all ranks stop; {ADVICE}"

Position = tuple[int, int, int, int]
Process = tuple[str, int, str]


@dataclass(frozen=True)
class Beat:
    """What a process says of itself every few seconds.

    Args:
        number: of the beat.
        position: loops begun, batch, point of it, rests in it: equal work of the processes has equal positions, later
            work larger ones.
        doing: the same in words.
        place: where its main thread is, as file:line of this project or of Lightning.
        watched: what must show within `patience` seconds.
        effort: so far, without what was done while it waited for other processes.
        waits: whether torch waits there for other processes.
        started: when the process started, as the system counts it: another one may get its number.
        over: it has ended its work, or has told its error.
        at_fault: the verdict of rank 0, in its last beats.
    """

    rank: int
    pid: int
    host: str
    started: str
    number: int = 0
    position: Position = (0, 0, 0, 0)
    doing: str = ""
    place: str = "?"
    watched: Watched = Watched.EFFORT
    effort: Effort = field(default_factory=Effort)
    waits: bool = False
    patience: float = 0.0
    over: bool = False
    at_fault: tuple[Process, ...] | None = None

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"

    @property
    def process(self) -> Process:
        return self.host, self.pid, self.started


@dataclass(frozen=True)
class Verdict:
    """One line for the user, and which processes (host, id, start) are at fault."""

    line: str
    processes: tuple[Process, ...] = ()


class Judge:
    """Remembers when each process was heard, and when it last got on."""

    def __init__(self) -> None:
        self.heard: dict[int, tuple[int, float]] = {}
        self.moved: dict[int, tuple[Beat, float]] = {}
        self.begun: dict[int, tuple[int, float]] = {}
        self.awaited: dict[int, tuple[Position, float]] = {}

    def silence(self, beats: Sequence[Beat], now: float, patience: float) -> Verdict | None:
        """Whether one of the processes, by their newest beats at `now`, has sent none for `patience` seconds."""
        for beat in beats:
            if self.heard.get(beat.rank, (-1, 0.0))[0] != beat.number:
                self.heard[beat.rank] = beat.number, now
            seconds = now - self.heard[beat.rank][1]
            if seconds > patience and not beat.over:
                return silent(beat, seconds)
        return None

    def stall(self, beats: Sequence[Beat], now: float) -> Verdict | None:
        """Whether a step lasts too long, or nothing is done elsewhere, by the newest beats of all at `now`, in seconds.

        Where one hangs all come to wait for it: it is the one furthest behind, and among several the one that does
        not itself wait. A process alone makes nobody wait: of its work only the reading of images counts.
        """
        for beat in beats:
            loops, _ = self.begun.get(beat.rank, (-1, 0.0))
            if beat.position[0] != loops:
                self.begun[beat.rank] = beat.position[0], now
        for beat in beats:
            before, _ = self.moved.get(beat.rank, (None, 0.0))
            held_up = self._held_up(beat, beats, now)
            if before is None or beat.position != before.position or _works(beat, before, held_up):
                self.moved[beat.rank] = beat, now
        here = [beat for beat in beats if not beat.over]
        last = min((beat.position for beat in here), default=None)
        behind = [beat for beat in here if beat.position == last]
        seconds = min((now - self.moved[beat.rank][1] for beat in behind), default=0.0)
        if seconds <= max((beat.patience for beat in behind), default=0.0):
            return None
        if len(beats) == 1:
            (beat,) = behind
            line = f"{beat.doing} for {seconds:.0f} s, at {beat.place}: what reads them hangs, or its disk; {ADVICE}"
            reads = beat.watched is Watched.STEP and beat.position[2] == Point.FETCHES
            return Verdict(line, (beat.process,)) if reads else None
        if len(here) < len(beats):
            left = next(beat for beat in beats if beat.over)
            return Verdict(f"{left} has ended, its error above, and the others wait for it: {ALL_STOP}")
        hang = [beat for beat in behind if not beat.waits] or behind
        each = "; ".join(f"{beat} hangs for {seconds:.0f} s {beat.doing}, at {beat.place}" for beat in hang)
        return Verdict(f"{each}: {ALL_STOP}", tuple(beat.process for beat in hang))

    def _held_up(self, beat: Beat, beats: Sequence[Beat], now: float) -> bool:
        """Whether others wait for it so long that of its work only the bytes it moves count: it may loop for ever.

        That is at once, but in a first batch, where all compile and start readers: they wait twice as long as theirs
        took, or `patience`. Before training the first process of a machine prepares data alone, and between steps
        rank 0 writes alone: that may take as long as it likes.
        """
        loops, batch, _, rests = beat.position
        first = min(other.rank for other in beats if other.host == beat.host)
        alone = beat.rank == first if loops == 0 else beat.rank == 0 and (batch == END or rests > 0)
        waiting = [other for other in beats if _waits_for(other, beat)]
        if alone or not waiting:
            self.awaited.pop(beat.rank, None)
            return False
        position, since = self.awaited.get(beat.rank, (None, now))
        if position != beat.position:
            since = now
            self.awaited[beat.rank] = beat.position, now
        took = since - min(self.begun[other.rank][1] for other in waiting) if batch == 0 else 0.0
        return now - since >= 2 * took - beat.patience


def _waits_for(other: Beat, beat: Beat) -> bool:
    """Whether a process is ahead of another one, or waits where that one does something."""
    return other.position > beat.position or (other.position == beat.position and other.waits and not beat.waits)


def _works(beat: Beat, before: Beat, held_up: bool) -> bool:
    """Whether it has since done what counts as getting on."""
    done = beat.effort - before.effort
    seconds = done.moved + (0.0 if held_up else done.worked)
    return beat.watched is Watched.EFFORT and seconds > IDLE * beat.patience


def absent(ranks: Sequence[int], where: str, seconds: float) -> Verdict:
    """Of processes that have not come to the store at `where`."""
    named = " and ".join(f"rank {rank}" for rank in ranks)
    return Verdict(f"{named} did not come to {where} within {seconds:.0f} s: {ALL_STOP}")


def silent(beat: Beat, seconds: float) -> Verdict:
    """Of a process that sends no beats."""
    return Verdict(
        f"{beat} is stopped or does not answer for {seconds:.0f} s, last {beat.doing}, at {beat.place}: {ALL_STOP}",
        (beat.process,),
    )


def gone(beat: Beat) -> Verdict:
    """Of a process that ended without telling an error."""
    return Verdict(f"{beat} is gone, killed or ended without a word: {ALL_STOP}", (beat.process,))


def alive(process: Process) -> bool:
    """Whether a process of this machine still runs or is stopped, and the number is not another one's by now."""
    return bool(process[2]) and started(process[1]) == process[2]


def started(pid: int) -> str:
    """When a process of this machine started, as the system counts it; "" if it has ended, or on no Linux."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return ""
    return "" if state in "ZX" else rest[18]
