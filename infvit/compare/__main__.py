"""`python -m infvit.compare RUN_DIRS...`: prints the table of these runs and writes its files."""

import argparse
import shutil
import sys
from pathlib import Path

from infvit.compare import FILES, to_text, write_comparison
from infvit.compare.comparison import BASELINE, Comparison, find_results
from infvit.errors import UsageError
from infvit.run.files import tolerate_any_terminal


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    tolerate_any_terminal()
    parser = argparse.ArgumentParser(prog="python -m infvit.compare", description=__doc__)
    parser.add_argument("run_dirs", nargs="+", metavar="RUN_DIR", help="folder of a run, or of many")
    parser.add_argument("--out", default=".", metavar="DIR", help="folder for the files (default: here)")
    parser.add_argument(
        "--baseline", metavar="NAME", help=f"model or row that others are paired with (default: {BASELINE})"
    )
    parser.add_argument(
        "--margin",
        type=float,
        default=Comparison.margin,
        metavar="POINTS",
        help="rows this near to each other are equal (default: %(default)g)",
    )
    parser.add_argument(
        "--curve-epochs",
        type=int,
        nargs="*",
        default=Comparison.curve_epochs,
        metavar="N",
        help="top-1 after so many epochs too (default: 8)",
    )
    options = parser.parse_args(arguments)
    try:
        found = [find_results(path) for path in options.run_dirs]
        if not any(found):
            raise UsageError(f"no result.json in {', '.join(options.run_dirs)}; give the folder of a run or of a sweep")
        comparison = write_comparison(
            options.run_dirs,
            options.out,
            options.baseline,
            margin=options.margin,
            curve_epochs=tuple(options.curve_epochs),
        )
    except UsageError as error:
        print(error, file=sys.stderr)
        return 2
    print(to_text(comparison, max(40, min(160, shutil.get_terminal_size((80, 24)).columns))))
    for name in FILES:
        if (Path(options.out) / name).exists():
            print(Path(options.out) / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
