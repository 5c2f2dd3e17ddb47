"""The exceptions that the command line reports in one line, and the test for out-of-memory errors."""

import re
from collections.abc import Callable

import torch

OUT_OF_MEMORY = re.compile(r"allocate memory|not enough memory|CUDA out of memory")


class UsageError(ValueError):
    """Input that cannot be used; the message says in one line what was found, what is expected and how to fix it.

    The command line prints the line alone and exits with 2; every other exception is a bug and keeps its traceback.
    """


def expect(holds: bool, found: str, expected: str) -> None:
    """Raises UsageError(f"{found}: expected {expected}") unless `holds`."""
    if not holds:
        raise UsageError(f"{found}: expected {expected}")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether torch or Python ran out of memory, on the device or on the host."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


class Interrupted(SystemExit):
    """A signal ended the run; `line` reports that and the command that resumes it.

    `afterwards` is called once W&B has its data: SLURM's requeueing ends all processes of a job, W&B's too.
    """

    def __init__(self, line: str, code: int, afterwards: Callable[[], None] | None = None) -> None:
        super().__init__(line, code, afterwards)  # from which another process, of a parallel sweep, makes it again
        self.line, self.code, self.afterwards = line, code, afterwards
