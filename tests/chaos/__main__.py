"""`python -m tests.chaos [HARNESS [options]]`: breaks runs, prints what survived, exits with 1 if anything was lost."""

import argparse
import importlib
import pkgutil
import sys
import time
import traceback
from collections.abc import Iterator

import tests.chaos
from infvit.run.files import tolerate_any_terminal
from tests.chaos import Fault

HARNESSES = sorted(m.name for m in pkgutil.iter_modules(tests.chaos.__path__) if not m.name.startswith("_"))


def main() -> int:
    tolerate_any_terminal()
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    chosen = parser.add_subparsers(dest="harness", metavar="HARNESS", help=", ".join(HARNESSES))
    modules = {name: importlib.import_module(f"tests.chaos.{name}") for name in HARNESSES}
    for name, module in modules.items():
        module.arguments(chosen.add_parser(name, description=module.__doc__))
    words = sys.argv[1:]
    names = [parser.parse_args(words).harness] if words else HARNESSES
    tried: dict[tuple[str, str], list[Fault]] = {}
    for name in names:
        since = time.monotonic()
        options = parser.parse_args(words or [name])
        for fault in faults_of(modules[name].run(options)):
            tried.setdefault((name, fault.kind), []).append(fault)
            print(f"{name}: {fault.kind}: {f'LOST {fault.lost}' if fault.lost else 'survived'}", flush=True)
        print(f"{name}: {time.monotonic() - since:.0f} s", flush=True)
    print("\n".join(table(tried)))
    return int(any(fault.lost for faults in tried.values() for fault in faults))


def faults_of(found: Iterator[Fault]) -> Iterator[Fault]:
    """Yields a harness's faults; a harness that fails itself counts as lost, and the others still run."""
    try:
        yield from found
    except Exception:
        traceback.print_exc()
        yield Fault("the harness itself", "the rest of it")


def table(tried: dict[tuple[str, str], list[Fault]]) -> list[str]:
    """Returns a Markdown table: a row for each kind of fault, and one for all."""
    rows = [(*names, len(faults), sum(bool(f.lost) for f in faults)) for names, faults in tried.items()]
    rows.append(("all", "", sum(row[2] for row in rows), sum(row[3] for row in rows)))
    lines = ["", "| harness | fault | tried | survived | lost |", "|---|---|---|---|---|"]
    return lines + [f"| {name} | {kind} | {n} | {n - lost} | {lost} |" for name, kind, n, lost in rows]


if __name__ == "__main__":
    sys.exit(main())
