"""Where the main thread of a process is in its run, and how long it may stay there."""

import time

from callbacks.hangs import END, Point, Position, Watched

COMPILING = 600.0
"""Seconds of patience in a first batch with torch.compile: one machine may have compiled before, and another not."""


class Whereabouts:
    """Told by the main thread, read by others.

    Args:
        patience: seconds that a step may take in any case, and that a process may do nothing elsewhere.
    """

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._loops, self._loop, self._first = 0, "", True
        self.now: tuple[Position, Watched] = (0, 0, Point.FETCHES, 0), Watched.EFFORT
        self._begun = self._longest = self._longest_first = 0.0
        self._known: set[str] = set()
        self.compiles = False

    def begin(self, loop: str) -> None:
        """Of its very first batch only the effort is watched: readers start, code is compiled."""
        self._loops, self._loop, self._first, self._begun = self._loops + 1, loop, True, time.monotonic()
        self._at(0, Point.FETCHES, Watched.STEP if loop in self._known else Watched.EFFORT)

    def at(self, point: Point, batch: int | None = None) -> None:
        """Of the batch `batch`, or of the same one as before."""
        (_, before, _, _), watched = self.now
        self._at(before if batch is None else batch, point, watched)

    def end_of(self, batch: int, batches: float) -> None:
        now = time.monotonic()
        if self._loop not in self._known:
            self._longest_first = max(self._longest_first, now - self._begun)
            self._known.add(self._loop)
        elif self.now[1] is Watched.STEP and not self._first:  # which may have waited for rank 0 between two epochs
            self._longest = max(self._longest, now - self._begun)
        self._first, self._begun = False, now
        if batch + 1 < batches:
            self._at(batch + 1, Point.FETCHES, Watched.STEP)
        else:  # Lightning fetches the first images of a validation before its hooks
            fetches = self._loop == "training" and "validation" in self._known
            self._at(END, Point.FETCHES, Watched.STEP if fetches else Watched.EFFORT)

    def rest(self) -> None:
        """What follows may take long: rank 0 writes to a slow disk, and the others wait for it."""
        (loops, batch, point, rests), _ = self.now
        self.now = (loops, batch, point, rests + 1), Watched.EFFORT

    def go_on(self, watched: Watched) -> None:
        """Behind a rest within a step, which is watched as it was before."""
        (loops, batch, point, rests), _ = self.now
        self._begun = time.monotonic()
        self.now = (loops, batch, point, rests + 1), watched

    @property
    def patience(self) -> float:
        """Seconds, of what is watched now: a step may take 10 times the longest so far, twice the longest first one."""
        if self.now[1] is Watched.EFFORT:
            first = self._loop not in self._known
            return max(self._patience, COMPILING) if self.compiles and first else self._patience
        return max(self._patience, 10 * self._longest, 2 * self._longest_first)

    @property
    def doing(self) -> str:
        """The position in words."""
        _, batch, point, _ = self.now[0]
        if not self._loop:
            return "before the first batch"
        if batch == END:
            return f"behind the last batch of {self._loop}"
        return f"{'waiting for the images of' if point == Point.FETCHES else 'in'} batch {batch + 1} of {self._loop}"

    def _at(self, batch: int, point: Point, watched: Watched) -> None:
        self.now = (self._loops, batch, point, 0), watched
