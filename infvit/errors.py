"""The one exception for mistakes that the user can mend."""

from collections.abc import Callable


class UsageError(ValueError):
    """Input that cannot be used, told in one line: what, what was found, what is expected, how to mend it.

    The command line prints the line alone and exits with 2; every other exception is a bug and keeps its traceback.
    """


def expect(holds: bool, found: str, expected: str) -> None:
    """Raises UsageError(f"{found}: expected {expected}") unless it holds."""
    if not holds:
        raise UsageError(f"{found}: expected {expected}")


class Interrupted(SystemExit):
    """A signal ended the run after its checkpoint was written; `line` says so and how to go on.

    `afterwards` is done when W&B has its data: SLURM's requeueing ends all processes of a job, W&B's too.
    """

    def __init__(self, line: str, code: int, afterwards: Callable[[], None] | None = None) -> None:
        super().__init__(code)
        self.line, self.afterwards = line, afterwards
