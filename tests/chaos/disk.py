"""A full disk: while a run writes its files, until its end, from its start, and while data are prepared.

The disk is a small tmpfs, which only this harness sees and which a file fills at chosen moments. When there is room
again, the same command resumes, and the result equals that of a run that always had room.
"""

import argparse
import csv
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import data.prepare.__main__
from callbacks.attention_maps import AttentionMaps
from callbacks.loggers import ResumableCSVLogger
from callbacks.run_record import RunRecord
from callbacks.sweep import comparison
from data.beton.shards import Shards
from data.prepare.job import Job
from infvit.run import checkpoint
from infvit.run.result import Result
from tests.chaos import Fault
from tests.chaos._small_disk import Disk, MountError, mounted
from tests.chaos.kill import RUN, difference, left, start
from tests.data.photographs import shades

FULL = "No space left on device"
MISSING = "not written, or not to the end: "
SHORT = ["recipe.epochs=1", "recipe.warmup_epochs=0"]
SWEEP = ["-m", *(word for word in RUN if not word.startswith(("hydra.run", "resume"))), *SHORT, "model=vit"]


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", choices=FAULTS, default=list(FAULTS), help="faults to try")


def run(options: argparse.Namespace) -> Iterator[Fault]:
    """Runs in a process of its own, since a process with threads cannot change its mount namespace."""
    reading, writing = os.pipe()
    process = os.fork()
    if not process:
        code = 1
        try:
            os.close(reading)
            with os.fdopen(writing, "w") as pipe, tempfile.TemporaryDirectory() as name:
                disk = Disk(Path(name, "disk"), Path(name, "beside"))
                os.environ |= {"WANDB_MODE": "offline", "INFVIT_CACHE": str(disk.beside / "cache")}
                with mounted(disk.folder):
                    train_in(disk.beside / "reference")
                    reference = left(disk.beside / "reference" / "run")
                    for fault in (fault for chosen in options.only for fault in FAULTS[chosen](disk, reference)):
                        print(json.dumps(asdict(fault)), file=pipe, flush=True)
            code = 0
        except MountError as error:
            print(f"disk: skipped: no file system can be mounted here ({error})", flush=True)
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        for line in pipe:
            yield Fault(**json.loads(line))
    if os.waitpid(process, 0)[1]:
        raise RuntimeError("the harness broke: see above")


def train_in(
    folder: Path, first: Callable[[], None] = lambda: None, output: Path = Path("output.txt"), words: list[str] = RUN
) -> tuple[int, str]:
    """The exit code of a training in this folder, and its output."""
    _, status = os.waitpid(start(folder, first, words, str(output)), 0)
    return os.waitstatus_to_exitcode(status), (folder / output).read_text()


def in_a_run(disk: Disk, reference: dict[str, Any]) -> Iterator[Fault]:
    """Full while one kind of file is written, and for an epoch while all of them are, including the terminal's log."""
    pictures = ["maps/epoch_0003.png", "attention.png"]
    newest, table, result = checkpoint.NEWEST, "metrics.csv", "result.json"
    cases = {
        "while checkpoints are written": (
            disk.full_in(checkpoint.AtomicCheckpointIO, "save_checkpoint", range(2, 4), room=20_000),
            [newest],
        ),
        "while result.json is written": (disk.full_in(RunRecord, "write", range(3, 5)), [result]),
        "while metrics.csv is written": (disk.full_in(ResumableCSVLogger, "save", range(2, 5)), [table]),
        "while pictures are written": (disk.full_in(AttentionMaps, "_draw", range(1, 3)), pictures),
        "for an epoch": (disk.full_from(5, 17), [newest, table, result]),
    }
    for name, (moments, warned) in cases.items():
        folder = disk.folder / name
        code, output = train_in(folder, moments, disk.beside / name)
        lost = _code(code, 0) or _warnings(output, warned) or _finished(reference, folder)
        unlisted = warned == pictures and MISSING not in output
        yield Fault(f"full {name}", lost or ("the list of what is missing" if unlisted else None))
    folder = disk.folder / "log"
    code, _ = train_in(folder, disk.full_from(5, 17), folder / "output.txt")
    yield Fault("full for an epoch, the terminal's log too", _code(code, 0) or _finished(reference, folder))


def to_its_end(disk: Disk, reference: dict[str, Any]) -> Iterator[Fault]:
    folder = disk.folder / "end"
    each_step = [*RUN, "checkpoint.every_minutes=0"]
    code, output = train_in(folder, disk.full_from(15), disk.beside / "end", each_step)
    found = checkpoint.newest_first(folder / "run" / "checkpoints")
    damaged = len(found) != checkpoint.KEPT or checkpoint.newest_intact(folder / "run" / "checkpoints") != found[0]
    lost = _code(code, 2) or _one_error(output) or ("a checkpoint" if damaged else None)
    lost = lost or ("result.json" if Result.read(folder / "run" / "result.json").status != "running" else None)
    lost = lost or (None if MISSING in output else "the list of what is missing")
    disk.free()
    code, output = train_in(folder, output=disk.beside / "end")
    yield Fault("full to the run's end, then the same command", lost or _code(code, 0) or _finished(reference, folder))


def from_its_start(disk: Disk, reference: dict[str, Any]) -> Iterator[Fault]:
    for name, words in (("run", RUN), ("sweep", SWEEP)):
        folder = disk.folder / f"start of a {name}"
        disk.fill()
        code, output = train_in(folder, words=words, output=disk.beside / folder.name)
        lost = _code(code, 2) or _one_error(output) or (str([*folder.iterdir()]) if [*folder.iterdir()] else None)
        disk.free()
        if name == "run":
            code, _ = train_in(folder, output=disk.beside / folder.name)
            lost = lost or _code(code, 0) or _finished(reference, folder)
        yield Fault(f"full before the {name} starts", lost)


def in_wandb(disk: Disk, reference: dict[str, Any]) -> Iterator[Fault]:
    folder = disk.folder / "wandb"
    words = [word for word in RUN if word != "logger=csv"]
    code, _ = train_in(folder, disk.full_from(5, 17), disk.beside / "wandb", words)
    lost = _code(code, 0) or _finished(reference, folder)
    if not lost:
        (log,) = folder.glob("run/wandb/offline-run-*")
        inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", log]
        lines = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
        rows = [json.loads(line)["history"]["item"] for line in lines if '"type":"history"' in line]
        steps = {row["step"] for row in csv.DictReader((folder / "run" / "metrics.csv").open())}
        lost = ", ".join(steps - {str(row.get("trainer/global_step")) for row in rows}) or None
    yield Fault("full for an epoch with W&B's offline files", lost)


def in_a_comparison(disk: Disk, _: dict[str, Any]) -> Iterator[Fault]:
    folder, moments = disk.folder / "sweep", disk.full_in(comparison, "write_comparison", range(1, 2))
    sweep = folder / "runs" / "digits" / "digits_sweep"
    code, output = train_in(folder, moments, disk.beside / "sweep", SWEEP)
    lost = _code(code, 1) or _one_error(output) or ("half a page" if [*sweep.glob("comparison*")] else None)
    code, _ = train_in(folder, output=disk.beside / "sweep", words=SWEEP)
    lost = (
        lost
        or _code(code, 0)
        or (None if (sweep / "comparison.html").read_text().rstrip().endswith("</html>") else "the page")
    )
    yield Fault("full while a sweep's comparison is written", lost)


def _code(found: int, expected: int) -> str | None:
    return f"exit code {found}, not {expected}" if found != expected else None


def _warnings(output: str, expected: list[str]) -> str | None:
    """The difference from one warning for each of the expected names."""
    found = [line.partition(" cannot be written")[0] for line in output.splitlines() if " cannot be written" in line]
    return None if sorted(found) == sorted(expected) else f"the warnings {expected}, found {found}"


def _one_error(output: str) -> str | None:
    errors = [line for line in output.splitlines() if line.startswith("error: ")]
    one = len(errors) == 1 and FULL in errors[0] and "Traceback" not in output
    return None if one else f"the one line, output: {output}"


def _finished(reference: dict[str, Any], folder: Path) -> str | None:
    """What differs from the undisturbed run, and temporary files that are left."""
    rest = [str(path) for path in folder.rglob("*") if path.name.endswith((".part", ".tmp"))]
    return difference(reference, left(folder / "run")) or ", ".join(rest) or None


def in_prepared_data(disk: Disk, _: dict[str, Any]) -> Iterator[Fault]:
    """Full while `python -m data.prepare` writes: its files are complete or absent."""
    images = shades(disk.beside / "images", 12)
    command = ["imagefolder", "--source", str(images), "--shard", "4", "--out"]
    _prepared(lambda: None, [*command, str(disk.beside / "prepared")], disk.beside / "prepared.txt")
    expected = {path.name: path.read_bytes() for path in (disk.beside / "prepared").iterdir()}
    for name, moments in {
        "from the start": (data.prepare.__main__, "_prepare", range(1, 2)),
        "in a shard": (Shards, "add", range(6, 7)),
        "at a shard's end": (Shards, "keep", range(3, 4)),
        "at the end": (Shards, "finish", range(1, 2)),
        "with the originals": (Job, "_keep_originals", range(1, 2)),
    }.items():
        out, log = disk.folder / f"prepared {name}", disk.beside / f"prepared {name}.txt"
        code, output = _prepared(disk.full_in(*moments, stays=True), [*command, str(out)], log)
        disk.free()
        lines = [line for line in output.splitlines() if "make room" in line or FULL in line]
        incomplete = [path for path in out.glob("*.beton") if path.read_bytes() != expected[path.name]]
        lost = _code(code, 2) or (None if len(lines) == 1 and "Traceback" not in output else f"the one line: {output}")
        lost = lost or ("half a file" if incomplete else None)
        code, output = _prepared(lambda: None, [*command, str(out)], log)
        found = {path.name: path.read_bytes() for path in out.iterdir()}
        yield Fault(f"full while data are prepared, {name}", lost or _code(code, 0) or difference(expected, found))


def in_ffcvs_files(disk: Disk, _: dict[str, Any]) -> Iterator[Fault]:
    """Full while a run writes the file that FFCV reads."""
    if importlib.util.find_spec("ffcv") is None:
        return
    folder, log = disk.folder / "ffcv", disk.beside / "ffcv.txt"
    cache, words = disk.folder / "cache", [*RUN, "data/loader=ffcv"]
    os.environ["INFVIT_CACHE"] = str(cache)
    code, output = train_in(folder, disk.full_in(Shards, "add", range(90, 91), stays=True), log, words)
    lost = _code(code, 2) or _one_error(output) or ("half a file" if [*cache.rglob("*.beton")] else None)
    disk.free()
    code, output = train_in(folder, output=log, words=words)
    yield Fault("full while a run writes FFCV's files", lost or _code(code, 0))


def _prepared(first: Callable[[], None], command: list[str], log: Path) -> tuple[int, str]:
    """The exit code of `python -m data.prepare`, run after `first`, and its output."""
    process = os.fork()
    if not process:
        code = 1
        try:
            written = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(written, 1)
            os.dup2(written, 2)
            first()
            code = data.prepare.__main__.main(command)
            sys.stdout.flush()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), log.read_text()


FAULTS: dict[str, Callable[[Disk, dict[str, Any]], Iterator[Fault]]] = {
    "run": in_a_run,
    "end": to_its_end,
    "start": from_its_start,
    "wandb": in_wandb,
    "comparison": in_a_comparison,
    "prepare": in_prepared_data,
    "ffcv": in_ffcvs_files,
}
