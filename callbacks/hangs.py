"""Which of a job's processes hangs, is stopped or is gone: told from the beats that `callbacks.heartbeat` sends."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path


class Point(IntEnum):
    """Of a batch, in their order."""

    FETCHES = 0
    STARTS = 1
    RUNS_BACKWARD = 2
    HAS_RUN_BACKWARD = 3
    UPDATES = 4


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
        watched: whether that must not take longer than `patience` seconds.
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
    watched: bool = False
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
        self.moved: dict[int, tuple[Position, float]] = {}

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
        """Whether a step lasts too long, by the newest beats of all processes at `now`, in seconds; and whose fault.

        Where one hangs all come to wait for it: it is the one furthest behind, and among several the one that does
        not itself wait. What is not watched may take as long as it likes. A process alone makes nobody wait: of its
        work only the reading of images counts.
        """
        for beat in beats:
            if self.moved.get(beat.rank, ((-1, 0, 0, 0), 0.0))[0] != beat.position:
                self.moved[beat.rank] = beat.position, now
        here = [beat for beat in beats if not beat.over]
        last = min((beat.position for beat in here), default=None)
        behind = [beat for beat in here if beat.position == last]
        seconds = min((now - self.moved[beat.rank][1] for beat in behind), default=0.0)
        if seconds <= max((beat.patience for beat in here), default=0.0) or not all(beat.watched for beat in behind):
            return None
        if len(beats) == 1:
            (beat,) = behind
            line = f"{beat.doing} for {seconds:.0f} s, at {beat.place}: what reads them hangs, or its disk; {ADVICE}"
            return Verdict(line, (beat.process,)) if beat.position[2] == Point.FETCHES else None
        if len(here) < len(beats):
            left = next(beat for beat in beats if beat.over)
            return Verdict(f"{left} has ended, its error above, and the others wait for it: {ALL_STOP}")
        hang = [beat for beat in behind if not beat.waits] or behind
        each = "; ".join(f"{beat} hangs for {seconds:.0f} s {beat.doing}, at {beat.place}" for beat in hang)
        return Verdict(f"{each}: {ALL_STOP}", tuple(beat.process for beat in hang))


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
