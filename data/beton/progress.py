"""A progress bar of many images: how many are done, MB/s and the time left."""

import sys
import time

from tqdm import tqdm


class ImageProgress(tqdm):
    """tqdm's bar on standard output; off a terminal it is printed every ten seconds.

    Args:
        title: printed before the bar.
        total: number of images.
        done: images that an earlier run has finished; speed and time left are of this run.
    """

    def __init__(self, title: str, total: int, done: int = 0) -> None:
        seconds = 0.1 if sys.stdout.isatty() else 10.0
        super().__init__(desc=title, total=total, initial=done, unit=" images", mininterval=seconds, file=sys.stdout)
        self.bytes, self.since = 0, time.monotonic()

    def advance(self, images: int, read: int) -> None:
        """Counts `images`, for which `read` bytes were read."""
        self.bytes += read
        rate = self.bytes / max(time.monotonic() - self.since, 1e-9)
        self.set_postfix_str(f"{rate / 1e6:,.1f} MB/s" if read else "", refresh=False)
        self.update(images)
