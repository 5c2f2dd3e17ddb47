"""Image files that are removed, cut short or overwritten while a run reads them: one line names the file.

Then the files are restored, and the same command finishes the run.
"""

import argparse
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from infvit.run.result import Result
from tests.chaos import Fault
from tests.chaos.disk import train_in
from tests.chaos.kill import RUN, after_steps
from tests.data.photographs import shades


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def overwritten(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))


DAMAGES: dict[str, Callable[[Path], None]] = {
    "removed": Path.unlink,
    "cut short": cut_short,
    "overwritten": overwritten,
}


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS), help="how the images are read")


def run(options: argparse.Namespace) -> Iterator[Fault]:
    os.environ["WANDB_MODE"] = "offline"
    for reader, (name, damage) in itertools.product(options.only, DAMAGES.items()):
        with tempfile.TemporaryDirectory() as folder:
            yield from READERS[reader](Path(folder), name, damage)


def in_a_tree(folder: Path, name: str, damage: Callable[[Path], None]) -> Iterator[Fault]:
    """Images in class folders, read by the process that trains or by a worker process."""
    images = sorted(shades(folder / "images", 16).rglob("*.png"))
    for workers in (0, 1):
        words = [*RUN, "data=imagefolder", f"data.root={folder / 'images'}", f"data.module.workers={workers}"]
        words += ["recipe.batch_size=2", "callbacks.attention_maps=null"]
        lost = _lost(folder / f"run{workers}", words, images, damage)
        yield Fault(f"images in folders {name}" + ", read by a worker process" * workers, lost)


def in_ffcvs_file(folder: Path, name: str, damage: Callable[[Path], None]) -> Iterator[Fault]:
    """A .beton file, which is mapped into memory: a removed one stays readable until the run ends."""
    if importlib.util.find_spec("ffcv") is None:
        return
    os.environ["INFVIT_CACHE"] = str(folder / "cache")
    words = [*RUN, "data/loader=ffcv"]
    lost = _lost(folder / "run", words, folder / "cache", damage, stays=damage == Path.unlink)
    yield Fault(f".beton file {name}", lost)


READERS = {"tree": in_a_tree, "ffcv": in_ffcvs_file}


def _lost(
    folder: Path,
    words: list[str],
    files: list[Path] | Path,
    damage: Callable[[Path], None],
    stays: bool = False,
) -> str | None:
    """Damages the files after 14 steps; returns what is wrong with the run's end or its resumption."""

    def damage_all() -> None:
        for path in files if isinstance(files, list) else files.rglob("*-train-*.beton"):
            damage(path)

    contents = {path: path.read_bytes() for path in files} if isinstance(files, list) else {}
    code, output = train_in(folder, after_steps({14: damage_all}), words=words)
    result = Result.read(folder / "run" / "result.json")
    errors = [line.removeprefix("error: ") for line in output.splitlines() if line.startswith("error: ")]
    if stays:
        return None if code == 0 and result.status == "finished" else f"the run: exit code {code}, output: {output}"
    if code == 0 or len(errors) != 1 or "Traceback" in output:
        return f"the one line: exit code {code}, output: {output}"
    if not any(ending in errors[0] for ending in (".png", ".beton")):
        return f"the name of the file, output: {output}"
    if (result.status, result.error) != ("failed", errors[0]):
        return f"the line in result.json, which says {result.status}: {result.error}"
    for path, content in contents.items():
        path.write_bytes(content)
    for path in [] if isinstance(files, list) else files.rglob("*.beton"):
        path.unlink()
    code, output = train_in(folder, words=words)
    return None if code == 0 else f"the resumed run: exit code {code}, output: {output}"
