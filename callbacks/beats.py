"""What the processes of a job tell each other of themselves, through the store by which they found each other."""

import contextlib
import dataclasses
import json
import socket
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from torch.distributed import PrefixStore, Store, TCPStore

from callbacks.effort import Effort
from callbacks.hangs import ALL_STOP, Beat, Verdict, Watched, absent, silent
from infvit.run.ranks import attempt, store_outlives_workers

CONNECT = timedelta(hours=1)
"""Who looks at the beats gives up sooner."""

SOON = 0.2
"""Seconds between two attempts to find the store."""

OURS = ("callbacks", "data", "infvit", "lightning", "train", "__main__")
COLLECTIVES = "torch.distributed"
WAITING = (COLLECTIVES, "torch.nn.parallel", "torch.autograd.graph")
"""Modules in which a main thread waits for the other processes: in collectives, and in backward passes with them."""


class Exchange(threading.Thread):
    """Sends this process's beat and fetches others, again and again; the main thread never waits for it.

    It begins before the store is there, whose process is gone when this thread ends; where that process is stopped it
    waits for ever: `answers`, the number of its rounds, stands still.

    Args:
        current: makes this process's beat.
        of: the ranks whose beats are fetched, of those that have sent one.
        every: seconds between two beats.
        address, port: of the store.
    """

    def __init__(self, current: Callable[[], Beat], of: range, every: float, address: str, port: int) -> None:
        super().__init__(daemon=True)
        self.current, self.of, self.every = current, of, every
        self.address, self.port = address, port
        self.beats: dict[int, Beat] = {}
        self.answers = 0
        self.over = threading.Event()
        self.of_torchrun = store_outlives_workers()
        self.prefix = f"infvit/beats/{attempt()}/{HydraConfig.get().runtime.output_dir}"

    def run(self) -> None:
        while not self._served():
            if self.over.wait(SOON):
                return
        try:
            # A connection of its own: that of the process group may wait in a collective.
            served = TCPStore(self.address, self.port, is_master=False, wait_for_workers=False, timeout=CONNECT)
            store = PrefixStore(self.prefix, served)
            self._round(store)
            while not self.over.wait(self.every):
                self._round(store)
            self._round(store)  # that it is over
        except RuntimeError:  # torch's errors of stores
            return

    def _served(self) -> bool:
        """Whether the store is there. torch's own attempts come ever later, seconds after the processes train."""
        with contextlib.suppress(OSError), socket.create_connection((self.address, self.port), timeout=self.every):
            return True
        return False

    def _round(self, store: Store) -> None:
        beat = self.current()
        store.set(str(beat.rank), json.dumps(dataclasses.asdict(beat)))
        there = [rank for rank in self.of if rank in self.beats or store.check([str(rank)])]
        found = store.multi_get([str(rank) for rank in there])
        self.beats = dict(zip(there, map(_read, found), strict=True))
        self.answers += 1

    @property
    def absent(self) -> list[int]:
        """Those of whom nothing was heard yet."""
        return [rank for rank in self.of if rank not in self.beats]

    def silence(self, seconds: float) -> Verdict:
        """That nothing was heard for so long, of some or of the store, which may be in no process of the job."""
        place = f"{self.address}:{self.port}"
        if self.answers and self.absent:
            return absent(self.absent, place, seconds)
        if self.of_torchrun:
            return Verdict(f"what started the processes does not answer at {place} for {seconds:.0f} s: {ALL_STOP}")
        return silent(self.beats[0], seconds) if self.answers else absent([0], place, seconds)


def _read(content: bytes) -> Beat:
    found = json.loads(content)
    found["watched"] = Watched(found["watched"])
    found["position"] = tuple(found["position"])
    found["effort"] = Effort(*found["effort"])
    if found["at_fault"] is not None:
        found["at_fault"] = tuple(map(tuple, found["at_fault"]))
    return Beat(**found)


def where() -> tuple[str, str]:
    """The main thread's innermost place that a user may know, and the module that it is in."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    innermost = "" if frame is None else str(frame.f_globals.get("__name__", ""))
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] in OURS:
            path = Path(frame.f_code.co_filename)
            return f"{Path(*path.parts[-1 - module.count('.') :])}:{frame.f_lineno}", innermost
        frame = frame.f_back
    return "?", innermost
