"""Runs the command lines in this process: the same entry points, arguments, output and exit codes as in a shell."""

import importlib
import json
import os
import shutil
import socket
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
import torch

import eval as eval_script
import train as train_script
from infvit import cli as command_line
from infvit.attention.registry import ATTENTIONS, GROUP
from infvit.check.__main__ import TEMPLATE
from tests.ranks import run_ranks

SCRIPTS = {"train": train_script.train, "eval": eval_script.evaluate}


def result(folder: Path) -> dict:
    """The result.json of a run's folder."""
    return json.loads((folder / "result.json").read_text())


@dataclass(frozen=True)
class Outcome:
    code: int
    out: str
    err: str
    folder: Path

    def ok(self) -> "Outcome":
        """Itself, after checking that the command succeeded."""
        assert self.code == 0, self.err
        return self

    def error(self) -> str:
        """The one line that refuses the command, after checking exit code 2 and that there is no traceback."""
        assert self.code == 2, self.out + self.err
        assert "Traceback" not in self.err
        (line,) = [line for line in self.err.splitlines() if line.startswith("error: ")]
        return line

    def runs(self) -> list[Path]:
        """The folders of the runs, oldest first."""
        return sorted(path.parent for path in self.folder.glob("runs/**/result.json"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the slow tests first: with several processes none of them is left alone with the longest file at the end."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, for the tests of pages (`tests.chromium`)."""
    from tests.chromium import running_browser  # other tests run without Playwright

    with running_browser() as running:
        yield running


@pytest.fixture(scope="session")
def data_cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def cli(monkeypatch, tmp_path, capfd, data_cache):
    """`cli("train", "experiment=digits", ...)` in an empty folder → Outcome."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("INFVIT_CACHE", str(data_cache))
    for name in ("WANDB_MODE", "WANDB_API_KEY"):  # as for a user who is not logged in
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no_netrc"))
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    monkeypatch.delenv("IMAGENET_DIR", raising=False)
    command_line.resolvers.register()

    def run(script: str, *arguments: str) -> Outcome:
        monkeypatch.setattr(sys, "argv", [f"{script}.py", *arguments])
        capfd.readouterr()
        code = 0
        try:
            with mock.patch.dict(os.environ):  # a command sets variables for its own process and its workers
                command_line.run(SCRIPTS[script])
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        captured = capfd.readouterr()
        return Outcome(code, captured.out, captured.err, tmp_path)

    return run


@pytest.fixture
def own_names():
    """Attentions that the test registers, and the template's package, are forgotten after it."""
    with mock.patch.dict(ATTENTIONS):
        yield
    for module in [name for name in sys.modules if name.partition(".")[0] == "mine_attn"]:
        del sys.modules[module]


@pytest.fixture
def installed(own_names, tmp_path, monkeypatch):  # noqa: ARG001
    """The template's package, installed in a folder; `installed("mine = mine_attn:Mine")` replaces its entry points."""
    folder = tmp_path / "site"
    shutil.copytree(TEMPLATE / "mine_attn", folder / "mine_attn")
    about = folder / "mine_attn-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: mine-attn\nVersion: 1.0\n")

    def name(entries: str) -> None:
        (about / "entry_points.txt").write_text(f"[{GROUP}]\n{entries}\n")
        importlib.invalidate_caches()

    name("mine = mine_attn:Mine")
    monkeypatch.syspath_prepend(folder)
    return name


@pytest.fixture
def two_processes(tmp_path, data_cache):
    """`two_processes("experiment=digits", ...)` trains by two ranks on the CPU → their folder and what they printed.

    They have the environment that torchrun gives.
    """

    def run(*arguments: str, trainer: str = "ddp_cpu") -> tuple[Path, str]:
        folder = tmp_path / "two_processes"
        folder.mkdir(exist_ok=True)
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        environment = {"INFVIT_CACHE": str(data_cache), "WANDB_MODE": "offline", "OMP_NUM_THREADS": "1"}
        environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
        words = [*arguments, f"trainer={trainer}", "trainer.devices=2"]
        run_ranks(_train, (folder, environment, words), 2)
        return folder, "".join((folder / f"printed{rank}").read_text() for rank in range(2))

    return run


def _train(rank: int, folder: Path, environment: dict[str, str], words: list[str]) -> None:
    os.environ |= environment | dict.fromkeys(("WORLD_SIZE", "LOCAL_WORLD_SIZE"), "2") | {"GROUP_RANK": "0"}
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.chdir(folder)
    printed = os.open(f"printed{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    torch.set_num_threads(1)
    sys.argv = ["train.py", *words]
    command_line.run(train_script.train)
