"""The one line of a process that is about to end, when its main thread cannot say it."""

import contextlib
import os

from lightning.pytorch import Trainer

from callbacks.of_run import find_callback
from callbacks.run_record import RunRecord
from infvit.run.result import Result, UnreadableResultError


def tell(trainer: Trainer, line: str, first_was_heard: bool = True) -> None:
    """From any thread of any rank: prints a line and leaves it in result.json, unless that tells of an end already.

    If nothing was heard of the first process, that end may be one of an earlier start.
    """
    record = find_callback(trainer, RunRecord)
    left = None
    if record is not None and not record.writes:
        with contextlib.suppress(OSError, UnreadableResultError):
            left = Result.read(record.path)
            if left.status != "running":
                if first_was_heard:
                    return
                left = None
    os.write(2, f"\nerror: {line}\n".encode())  # the main thread may hold Python's own lock of the stream
    if left is not None and record is not None:
        left.status, left.error = "failed", line
        left.write(record.path)
    elif record is not None and record.writes:
        record.failed(line)
