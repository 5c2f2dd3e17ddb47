"""`python -m infvit.check PACKAGE.CLASS [name=value ...]` checks an attention; `--template DIR` writes one."""

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
ROOT = Path(__file__).parents[2]


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code, 1 if a check failed."""
    tolerate_any_terminal()
    parser = argparse.ArgumentParser(prog="python -m infvit.check", description=__doc__)
    parser.add_argument("attention", nargs="?", metavar="PACKAGE.CLASS", help="importable from here, or a known name")
    parser.add_argument("options", nargs="*", metavar="NAME=VALUE", help="of the class; also dim=32 num_heads=4")
    parser.add_argument("--fast", action="store_true", help="without the compiler, time and memory")
    parser.add_argument(
        "--template", type=Path, metavar="DIR", help="writes a package with an attention, YAML and a test"
    )
    given = parser.parse_intermixed_args(arguments)
    try:
        if given.template:
            print(_write_template(given.template))
            return 0
        if not given.attention:
            parser.error("give PACKAGE.CLASS, or --template DIR")
        pairs = [option.partition("=") for option in given.options]
        report = check(_found(given.attention), fast=given.fast, **{k: yaml.safe_load(v) for k, _, v in pairs})
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(report)
    return int(bool(report.failed))


def _found(attention: str) -> type:
    if "." not in attention:
        return find(attention)
    try:
        return pkgutil.resolve_name(attention)
    except Exception as error:  # whatever the import of a package raises
        raise UsageError(
            f"{attention} cannot be imported ({type(error).__name__}: {error}): expected PACKAGE.CLASS from this folder"
        ) from error


def _write_template(folder: Path) -> str:
    """Copies the template; returns the commands that train, compare and evaluate its attention, also in its README."""
    try:
        shutil.copytree(TEMPLATE, folder, ignore=shutil.ignore_patterns("__pycache__"))
    except OSError as error:
        raise UsageError(f"--template {folder}: {error}: give the name of a new folder") from error
    train, evaluate = (ROOT / name if (ROOT / name).exists() else name for name in ("train.py", "eval.py"))
    commands = f"""\
{folder}: the attention mine_attn.Mine, its model and experiment for Hydra, a test.

    export PYTHONPATH={folder.resolve()}
    python -m infvit.check mine_attn.Mine
    python {train} --config-dir {folder.resolve()}/conf experiment=mine model=mine
    python {train} --config-dir {folder.resolve()}/conf -m experiment=mine
    python {evaluate} ckpt=RUN/checkpoints/last.ckpt trust=[mine_attn]

It is checked, trained alone, swept beside softmax and Linear-InfSA, and a RUN of
either is evaluated. `pip install -e {folder}` makes `model=mine` known without
PYTHONPATH, --config-dir and trust, and `convert(model, "mine")` too."""
    (folder / "README.md").write_text(commands + "\n", encoding="utf-8")
    return commands


if __name__ == "__main__":
    sys.exit(main())
