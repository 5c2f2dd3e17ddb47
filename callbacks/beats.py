"""What the processes of a job tell each other of themselves, through the store by which they found each other."""

import dataclasses
import json
import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from torch.distributed import PrefixStore, TCPStore

from callbacks.hangs import ALL_STOP, Beat, Verdict
from callbacks.ranks import agent_keeps_store, attempt

OURS = ("callbacks", "data", "infvit", "lightning", "train", "__main__")
WAITING = ("torch.distributed", "torch.nn.parallel", "torch.autograd.graph")
"""Modules in which a main thread waits for the other processes: in collectives, and in backward passes with them."""


class Exchange(threading.Thread):
    """Sends this process's beat and fetches others, again and again; the main thread never waits for it.

    Where the store's process is gone this thread ends, and where it is stopped it waits for ever: `answers`, the
    number of its rounds, stands still.

    Args:
        current: makes this process's beat.
        of: the ranks whose beats are fetched.
        every: seconds between two beats.
    """

    def __init__(self, current: Callable[[], Beat], of: range, every: float) -> None:
        super().__init__(daemon=True)
        self.current, self.of, self.every = current, of, every
        self.beats: dict[int, Beat] = {}
        self.answers = 0
        self.over = threading.Event()
        self.of_torchrun = agent_keeps_store()
        # A connection of its own: that of the process group may wait in a collective.
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        store = TCPStore(address, port, is_master=False, wait_for_workers=False)
        job = HydraConfig.get().runtime.output_dir
        self.store = PrefixStore(f"infvit/beats/{attempt()}/{job}", store)

    def run(self) -> None:
        last = False
        while not last:
            last = self.over.wait(self.every)
            try:
                self.send()
                self.fetch()
            except RuntimeError:  # torch's errors of stores
                return
            self.answers += 1

    def send(self) -> None:
        beat = self.current()
        self.store.set(str(beat.rank), json.dumps(dataclasses.asdict(beat)))

    def fetch(self) -> None:
        """All `of` them must have sent one."""
        found = self.store.multi_get([str(rank) for rank in self.of])
        self.beats = dict(zip(self.of, map(_read, found), strict=True))

    def silent(self, seconds: float) -> Verdict:
        """That the store does not answer, which is not in a process of the job."""
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        return Verdict(f"what started the processes does not answer at {where} for {seconds:.0f} s: {ALL_STOP}")


def _read(content: bytes) -> Beat:
    found = json.loads(content)
    found["position"] = tuple(found["position"])
    if found["at_fault"] is not None:
        found["at_fault"] = tuple(map(tuple, found["at_fault"]))
    return Beat(**found)


def where() -> tuple[str, bool]:
    """The main thread's innermost place that a user may know, and whether it waits there for other processes."""
    frame = sys._current_frames().get(threading.main_thread().ident or 0)
    waits = frame is not None and frame.f_globals.get("__name__", "").startswith(WAITING)
    while frame is not None:
        module = str(frame.f_globals.get("__name__", ""))
        if module.split(".")[0] in OURS:
            path = Path(frame.f_code.co_filename)
            return f"{Path(*path.parts[-1 - module.count('.') :])}:{frame.f_lineno}", waits
        frame = frame.f_back
    return "?", waits
