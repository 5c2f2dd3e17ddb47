"""The progress of many images through a job: images, MB/s and time left."""

import contextlib
import datetime
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

QUIET = 10
"""Seconds between two lines at least."""


class ImageProgress(contextlib.AbstractContextManager):
    """A bar in a terminal; elsewhere a line every tenth of a job that takes long.

    Args:
        title: what is done to the images.
        total: how many there are.
        done: how many an earlier run has done already; speed and time left are of this run.
        unit: of `total`, where they are no images.
    """

    def __init__(self, title: str, total: int, done: int = 0, unit: str = "") -> None:
        self.title, self.unit, self.total = title, unit and f" {unit}", max(total, 1)
        self.first, self.done, self.read = done, done, 0
        self.since = self.told = time.monotonic()
        self.bar: Progress | None = None
        if Console().is_terminal:
            columns = TextColumn("{task.description}"), BarColumn(16), TextColumn("{task.fields[state]}")
            self.bar = Progress(*columns, transient=True)
            self.task = self.bar.add_task(title, total=total, completed=done, state="")

    def __enter__(self) -> "ImageProgress":
        if self.bar is not None:
            self.bar.start()
        return self

    def __exit__(self, *error: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, images: int, read: int) -> None:
        """`images` more are done, for which `read` bytes were read."""
        before, self.done = self.done, self.done + images
        self.read += read
        if self.bar is not None:
            self.bar.update(self.task, completed=self.done, state=self.state())
        elif before * 10 // self.total < self.done * 10 // self.total and time.monotonic() - self.told > QUIET:
            self.told = time.monotonic()
            print(f"{self.title} {self.state()}", flush=True)

    def state(self) -> str:
        """Such as: 640,000 of 1,281,167 · 412 MB/s · ETA 0:04:12"""
        seconds = max(time.monotonic() - self.since, 1e-9)
        left = seconds / max(self.done - self.first, 1) * (self.total - self.done)
        speed = f"{self.read / seconds / 1e6:,.1f} MB/s · " if self.read else ""
        return f"{self.done:,} of {self.total:,}{self.unit} · {speed}ETA {datetime.timedelta(seconds=round(left))}"
