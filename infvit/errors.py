"""The one exception for mistakes that the user can mend."""


class UsageError(ValueError):
    """Input that cannot be used, told in one line: what, what was found, what is expected, how to mend it.

    The command line prints the line alone and exits with 2; every other exception is a bug and keeps its traceback.
    """


def expect(holds: bool, found: str, expected: str) -> None:
    """Raises UsageError(f"{found}: expected {expected}") unless it holds."""
    if not holds:
        raise UsageError(f"{found}: expected {expected}")
