"""Combinations of the groups of conf/: does each compose, and are its objects made?

`python -m tests.cli.config_grid` tries every model × size × data × recipe × trainer and prints what came of them. The
network is made on torch's meta device, where large ones cost nothing; all else is real. What a machine does not have,
such as GPUs or ImageNet, is reported in one line; the rest of such a combination is built without it.
"""

import argparse
import collections
import concurrent.futures
import contextlib
import itertools
import logging
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf, open_dict
from PIL import Image

from infvit.cli import resolvers
from infvit.cli.devices import check_batch, check_devices
from infvit.cli.entrypoint import HARMLESS_WARNINGS, one_line
from infvit.cli.validation import check_config
from train import PARTS, build

CONF = Path(__file__).parents[2] / "conf"

NAMED = ("model", "size", "data", "recipe", "trainer")

IMAGES = 1100
"""Of the tree that data=imagefolder finds: no recipe's batch is larger."""

Choices = dict[str, str]


def options() -> dict[str, list[str]]:
    """What each group of train.py can be, as the files of conf/ say; `data/loader` is a group in a group."""
    found: dict[str, list[str]] = {}
    for path in sorted(CONF.rglob("*.yaml")):
        group = str(path.parent.relative_to(CONF))
        if group not in (".", "eval") and not path.stem.startswith("_"):
            found.setdefault(group, []).append(path.stem)
    return found


def chosen_by_default() -> set[str]:
    """The groups that conf/train.yaml chooses from; the others are added, by a plus."""
    defaults = OmegaConf.load(CONF / "train.yaml").defaults
    return {name for entry in defaults if isinstance(entry, DictConfig) for name in entry} | {"data/loader"}


def words(choices: Choices) -> list[str]:
    """As on a command line."""
    known = chosen_by_default()
    plain = [f"{group}={option}" for group, option in choices.items()]
    return [word if word.partition("=")[0] in known or word.startswith("hydra/") else f"+{word}" for word in plain]


@dataclass(frozen=True)
class Verdict:
    """What came of a combination.

    Args:
        composed: whether Hydra made one configuration of it.
        refused: lines that say why something is not made, each with what it is.
        bug: an exception that is not reported in one line.
    """

    composed: bool
    refused: tuple[tuple[str, str], ...] = ()
    bug: str | None = None


def verdict(choices: Choices, images: Path, folder: Path) -> Verdict:
    """Composes and makes all that a run makes before it starts, in `folder`; data=imagefolder reads `images`."""
    resolvers.register()
    os.environ["INFVIT_CACHE"] = str(folder / "cache")
    own = [f"data.root={images}"] if choices.get("data") == "imagefolder" else []
    refused: list[tuple[str, str]] = []
    composed = False
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = compose("train", [*words(choices), *own], return_hydra_config=True)
        composed = True
        with open_dict(cfg):
            cfg.hydra.runtime.output_dir = str(folder)
            cfg.hydra.job.id, cfg.hydra.job.num = "0", 0
        HydraConfig.instance().set_config(cfg)
        with open_dict(cfg):
            del cfg.hydra
        _made(cfg, refused)
    except Exception as error:
        line = one_line(error)
        if line is None:
            return Verdict(composed, tuple(refused), f"{type(error).__name__}: {error}")
        refused.append(("all" if composed else "composition", line))
    return Verdict(composed, tuple(refused))


def _made(cfg: DictConfig, refused: list[tuple[str, str]]) -> None:
    def tried(name: str, part: Callable[[], object]) -> object:
        try:
            return part() or True
        except Exception as error:
            line = one_line(error)
            if line is None:
                raise
            refused.append((name, line))
            return None

    check_config(cfg, *PARTS)
    if not tried("devices", lambda: check_devices(cfg.trainer)):
        cfg.trainer.accelerator, cfg.trainer.devices, cfg.trainer.num_nodes = "cpu", 2, 1
    with torch.device("meta"):
        made = tried("model and data", lambda: build(cfg))
        if made is None:
            with open_dict(cfg):
                cfg.data.module.source = {"_target_": "data.datasets.digits.Digits"}
            made = tried("model", lambda: build(cfg))
    if not isinstance(made, tuple):
        return
    data, module = made
    tried("optimizer", lambda: module.make_schedule(module.make_optimizer(module.net, lr=module.lr), 1, 2))
    watchers = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
    loggers = [instantiate(logger) for logger in cfg.logger.values()]
    trainer = tried("trainer", lambda: instantiate(cfg.trainer, callbacks=watchers, logger=loggers))
    if trainer is not None:
        tried("batch", lambda: check_batch(trainer, module, data))


@contextlib.contextmanager
def some_images() -> Iterator[tuple[Path, Path]]:
    """(a tree for data=imagefolder, a folder to work in), for as long as they are needed."""
    with tempfile.TemporaryDirectory() as name:
        for split, name_of_class in itertools.product(("train", "val"), ("dark", "light")):
            folder = Path(name, "images", split, name_of_class)
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8), (200, 40, 40) if name_of_class == "light" else (20, 0, 0)).save(folder / "0.png")
            for i in range(1, IMAGES // 2 if split == "train" else 4):
                (folder / f"{i}.png").hardlink_to(folder / "0.png")
        yield Path(name, "images"), Path(name, "work")


def of_a_kind(line: str) -> str:
    """The line without its numbers and places, so that equal reasons are counted together."""
    return re.sub(r"/[\w/.-]+", "PATH", re.sub(r"\d[\d,.]*", "N", line))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.cli.config_grid", description=__doc__)
    parser.add_argument("--processes", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after; the order is random")
    wanted = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    for noise in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=noise)
    groups = options()
    combinations = [dict(zip(NAMED, row, strict=True)) for row in itertools.product(*(groups[name] for name in NAMED))]
    random.Random(0).shuffle(combinations)
    sizes = " × ".join(f"{len(groups[name])} {name}" for name in NAMED)
    print(f"{len(combinations):,} combinations: {sizes}", flush=True)
    reasons: collections.Counter[tuple[str, str]] = collections.Counter()
    since, tried, composed, whole, bugs = time.monotonic(), 0, 0, 0, 0
    with some_images() as (images, folder):
        pool = concurrent.futures.ProcessPoolExecutor(wanted.processes, multiprocessing.get_context("fork"))
        with pool:
            found = pool.map(verdict, combinations, *([p] * len(combinations) for p in (images, folder)), chunksize=20)
            for choices, got in zip(combinations, found, strict=True):
                tried += 1
                composed += got.composed
                whole += got.composed and not got.refused and got.bug is None
                reasons.update({(name, of_a_kind(line)) for name, line in got.refused})
                if got.bug is not None:
                    bugs += 1
                    print(f"BUG {' '.join(words(choices))}: {got.bug}", flush=True)
                if time.monotonic() - since > wanted.seconds:
                    pool.shutdown(wait=False, cancel_futures=True)
                    break
    refused = tried - whole - bugs
    print(f"tried {tried:,}: composed {composed:,}, made whole {whole:,}, refused {refused:,}, bugs {bugs:,}")
    for (name, line), count in reasons.most_common():
        print(f"{count:>6}  {name}: {line}")
    print(f"{time.monotonic() - since:.0f} s")
    return int(bugs > 0)


if __name__ == "__main__":
    sys.exit(main())
