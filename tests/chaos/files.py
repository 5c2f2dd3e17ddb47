"""Files of images that are removed, cut short or overwritten while a run reads them: one line names the file.

Then the files are put back, and the same command goes on to the end.
"""

import argparse
import importlib.util
import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from PIL import Image

from callbacks.epoch_seed import EpochSeed
from infvit.run.result import Result
from tests.chaos import Fault
from tests.chaos.disk import tried
from tests.chaos.kill import RUN


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
    parser.add_argument("--only", nargs="+", choices=READERS, default=list(READERS), help="of the ways to read")


def run(options: argparse.Namespace) -> Iterator[Fault]:
    os.environ["WANDB_MODE"] = "offline"
    for reader, (name, damage) in itertools.product(options.only, DAMAGES.items()):
        with tempfile.TemporaryDirectory() as folder:
            yield from READERS[reader](Path(folder), name, damage)


def in_a_tree(folder: Path, name: str, damage: Callable[[Path], None]) -> Iterator[Fault]:
    """Images in class folders, read by the process that trains and by one of its own."""
    for split, shade, i in itertools.product(("train", "val"), (40, 200), range(16)):
        place = folder / "images" / split / str(shade)
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (shade + i, shade, shade)).save(place / f"{i}.png")
    for workers in (0, 1):
        words = [*RUN, "data=imagefolder", f"data.root={folder / 'images'}", f"data.module.workers={workers}"]
        words += ["recipe.batch_size=2", "callbacks.attention_maps=null"]
        lost = _lost(folder / f"run{workers}", words, sorted((folder / "images").rglob("*.png")), damage)
        yield Fault(f"images in folders {name}" + " under a reading process" * workers, lost)


def in_ffcvs_file(folder: Path, name: str, damage: Callable[[Path], None]) -> Iterator[Fault]:
    """A .beton file, mapped into memory: what was removed stays until the run ends."""
    if importlib.util.find_spec("ffcv") is None:
        return
    os.environ["INFVIT_CACHE"] = str(folder / "cache")
    words = [*RUN, "data/loader=ffcv"]
    lost = _lost(folder / "run", words, folder / "cache", damage, stays=damage == Path.unlink)
    yield Fault(f".beton file {name}", lost)
    if damage is cut_short:
        from data.beton.decoder import Epoch

        lost = _lost(folder / "within", words, folder / "cache", damage, (Epoch, "run_pipeline"))
        yield Fault(f".beton file {name} within a batch (SIGBUS)", lost)


READERS = {"tree": in_a_tree, "ffcv": in_ffcvs_file}


def _lost(
    folder: Path,
    words: list[str],
    files: list[Path] | Path,
    damage: Callable[[Path], None],
    before: tuple[type, str] = (EpochSeed, "on_train_batch_end"),
    stays: bool = False,
) -> str | None:
    """What is wrong with how a run ended whose files were damaged before the 14th call, and with how it went on."""

    def damaged() -> None:
        owner, name = before
        real, seen = getattr(owner, name), 0

        def then(*arguments: object) -> object:
            nonlocal seen
            seen += 1
            if seen == 14:
                for path in files if isinstance(files, list) else files.rglob("*-train-*.beton"):
                    damage(path)
            return real(*arguments)

        setattr(owner, name, then)

    contents = {path: path.read_bytes() for path in files} if isinstance(files, list) else {}
    code, said = tried(folder, damaged, words=words)
    result = Result.read(folder / "run" / "result.json")
    errors = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    if stays:
        return None if code == 0 and result.status == "finished" else f"the run: exit code {code}, said was {said}"
    if code == 0 or len(errors) != 1 or "Traceback" in said:
        return f"the one line: exit code {code}, said was {said}"
    if not any(ending in errors[0] for ending in (".png", ".beton")):
        return f"the name of the file, said was {said}"
    if (result.status, result.error) != ("failed", errors[0]):
        return f"the line in result.json, which says {result.status}: {result.error}"
    for path, content in contents.items():
        path.write_bytes(content)
    for path in [] if isinstance(files, list) else files.rglob("*.beton"):
        path.unlink()
    code, said = tried(folder, words=words)
    return None if code == 0 else f"the way on: exit code {code}, said was {said}"
