"""Writes a data set into FFCV's files, once: ImageNet from folders, tars or Parquet files, other data from folders.

  python -m data.prepare imagenet    --source DIR --out OUT
  python -m data.prepare imagenet_v2 --source DIR --out OUT
  python -m data.prepare imagefolder --source DIR --out OUT

A training machine then needs OUT only:
  python train.py data=imagenet data.root=OUT

After a stop the same command resumes after the last whole shard.
"""

import argparse
import shutil
import sys
from pathlib import Path

from tqdm import tqdm

from data.beton.encoding import BetonSettings
from data.beton.loader import FFCVReader
from data.beton.writer import ROOM, SHARD, SMALLER
from data.datasets.imagenet_v2 import FOLDERS, synsets
from data.datasets.source import SPLITS, Split
from data.prepare import recognise
from data.prepare.job import Job
from data.prepare.originals import Published
from data.prepare.verify import verify
from infvit.errors import UsageError
from infvit.run.files import tolerate_any_terminal

INDICES = "indices"
"""The folder in --out for temporary files."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns its exit code."""
    tolerate_any_terminal()
    try:
        _prepare(_options(arguments))
    except UsageError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 2
    except OSError as error:
        print(f"stopped by the system, {error}: once that is fixed, the same command resumes", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the same command resumes after the last whole shard", file=sys.stderr)
        return 130
    return 0


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("data", choices=("imagenet", "imagenet_v2", "imagefolder"), help="as in data=NAME of train.py")
    add("--source", required=True, metavar="DIR", help="folder of the data set")
    add("--out", required=True, metavar="OUT", help="the folder to fill")
    add("--mode", choices=("jpg", "raw"), default="jpg", help="how pixels are stored; default: jpg")
    add("--max-side", type=int, default=500, metavar="PX", help="scale larger images down; 0: never; default: 500")
    add("--quality", type=int, default=90, metavar="Q", help="of JPEGs; default: 90")
    add("--shard", type=int, default=SHARD, metavar="N", help=f"images that a kill loses at most; default: {SHARD:,}")
    add("--skip-bad", action="store_true", help="leave out images that cannot be decoded, and name them")
    add("--allow-partial", action="store_true", help="accept an incomplete data set")
    add("--verify", action="store_true", help="compare a sample of what was written with the originals")
    return parser.parse_args(arguments)


def _prepare(options: argparse.Namespace) -> None:
    source, out = Path(options.source).expanduser().resolve(), Path(options.out).expanduser().resolve()
    settings = BetonSettings(options.mode, options.max_side or None, options.quality)
    FFCVReader()  # fails if it is not installed
    if not source.is_dir():
        raise UsageError(f"--source {source} is not a folder: give the one that holds the data set")
    out.mkdir(parents=True, exist_ok=True)
    found, classes = _found(options, source, out / INDICES)
    lacking: list[str] = []
    for (name, split), images in found.items():
        print(f"{name} {split}: {len(images):,} images in {images.kind}", flush=True)
        if words := recognise.missing(images, options.data, split, classes):
            lacking.append(f"{name} {split} has {', '.join(words)}")
    if options.data == "imagenet":
        absent = [split for split in SPLITS if ("imagenet", split) not in found]
        lacking += [f"{source} holds no {recognise.LOOKED_FOR[split]}" for split in absent]
    if not found or (lacking and not options.allow_partial):
        advice = ", or accept what there is by --allow-partial" if found else ""
        raise UsageError(f"{'; '.join(lacking)}: fetch what is missing{advice}")
    for lack in lacking:
        print(f"incomplete, accepted as it is: {lack}")
    given = (classes, out, settings, options.shard, options.skip_bad)
    jobs = [Job(name, split, images, *given) for (name, split), images in found.items()]
    waiting = [job for job in jobs if not job.is_done()]
    needed, free = sum(job.bytes_to_write() for job in waiting), shutil.disk_usage(out).free
    about = f"{tqdm.format_sizeof(needed)}B are needed, {tqdm.format_sizeof(free)}B are free"
    if needed > free:
        raise UsageError(f"{out} has too little room, {about}: {ROOM}; or {SMALLER}")
    print(f"{out}: about {about}", flush=True)
    for job in jobs:
        if job not in waiting:
            print(f"{job.path} exists already and is complete")
        job.run()
        if options.verify:
            verify(job)
    shutil.rmtree(out / INDICES, ignore_errors=True)
    print(f"{out} is ready: data={options.data} data.root={out}")


def _found(
    options: argparse.Namespace, source: Path, indices: Path
) -> tuple[dict[tuple[str, Split], Published], list[str]]:
    """Returns the images by name and split, and the names of the classes."""
    if options.data == "imagefolder":
        splits, classes = recognise.imagefolder(source)
        return {("imagefolder", split): images for split, images in splits.items()}, classes
    classes = synsets()
    if options.data == "imagenet":
        splits = recognise.imagenet(source, classes, indices)
        return {("imagenet", split): images for split, images in splits.items()}, classes
    sets = {name: recognise.imagenet_v2(source, name, classes) for name in FOLDERS}
    if not any(sets.values()):
        raise UsageError(f"{source} holds no ImageNet-V2: expected one of the folders {', '.join(FOLDERS.values())}")
    return {(f"imagenet_v2_{name}", "val"): images for name, images in sets.items() if images}, classes


if __name__ == "__main__":
    sys.exit(main())
