"""`python -m infvit.claims [RUNS...]`: writes the page of the published claims, with what the runs give."""

import argparse
import sys
from pathlib import Path

from infvit.claims.evidence import Runs
from infvit.claims.page import page
from infvit.errors import UsageError
from infvit.run.files import atomic_write, tolerate_any_terminal


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    tolerate_any_terminal()
    parser = argparse.ArgumentParser(prog="python -m infvit.claims", description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUNS", help="folders of runs and of measurements by eval.py")
    here = Path(__file__).with_name("README.md")
    parser.add_argument("--out", type=Path, default=here, metavar="FILE", help="the page (default: %(default)s)")
    options = parser.parse_args(arguments)
    try:
        text = page(Runs.found_in(options.runs) if options.runs else None)
        atomic_write(options.out, text)
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{options.out}: cannot be written: {error.strerror or error}", file=sys.stderr)
        return 2
    print(options.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
