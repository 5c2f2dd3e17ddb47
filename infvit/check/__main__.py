"""`python -m infvit.check PACKAGE.CLASS [NAME=VALUE ...]` checks an attention; `--template DIR` writes one."""

import argparse
import pkgutil
import shutil
import sys
from pathlib import Path

import yaml

from infvit.attention import find
from infvit.check import check
from infvit.errors import UsageError
from infvit.run.files import tolerate_any_terminal

TEMPLATE = Path(__file__).with_name("template")
COMMANDS = """\
{folder}: the attention mine_attn.Mine, its model and experiment, a test.

    export PYTHONPATH={folder}                          # or pip install -e
    python -m infvit.check mine_attn.Mine
    python {root}train.py --config-dir {folder}/conf experiment=mine model=mine
    python {root}train.py --config-dir {folder}/conf -m experiment=mine
    python {root}eval.py ckpt=RUN/checkpoints/last.ckpt trust=[mine_attn]

It is checked, trained alone, swept beside softmax and Linear-InfSA, and a RUN is
evaluated. Installed, it is `model=mine` without PYTHONPATH, --config-dir, trust.
"""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code, 1 if a check failed."""
    tolerate_any_terminal()
    parser = argparse.ArgumentParser(prog="python -m infvit.check", description=__doc__)
    parser.add_argument("attention", nargs="?", metavar="PACKAGE.CLASS", help="importable from here, or a known name")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="of the class; also dim=32 num_heads=4")
    parser.add_argument("--fast", action="store_true", help="without the compiler, time and memory")
    parser.add_argument("--template", type=Path, metavar="DIR", help="writes an attention with configs and a test")
    given = parser.parse_intermixed_args(arguments)
    if not given.attention and not given.template:
        parser.error("give PACKAGE.CLASS, or --template DIR")
    try:
        if given.template:
            print(_write_template(given.template.resolve()), end="")
            return 0
        options = {name: yaml.safe_load(value) for name, _, value in (word.partition("=") for word in given.options)}
        report = check(_imported(given.attention), given.fast, **options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    return int(bool(report.failed))


def _imported(attention: str) -> type:
    try:
        return pkgutil.resolve_name(attention) if "." in attention else find(attention)
    except (ImportError, AttributeError, SyntaxError) as error:
        reason = f"{type(error).__name__}: {error}"
        raise UsageError(
            f"{attention} cannot be imported ({reason}): expected PACKAGE.CLASS from this folder"
        ) from error


def _write_template(folder: Path) -> str:
    """Copies the template; returns the commands of its README."""
    try:
        shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise UsageError(f"--template {folder}: {error}: give the name of a new folder") from error
    root = Path(__file__).parents[2]
    commands = COMMANDS.format(folder=folder, root=f"{root}/" if (root / "train.py").exists() else "")
    (folder / "README.md").write_text(commands, encoding="utf-8")
    return commands


if __name__ == "__main__":
    sys.exit(main())
