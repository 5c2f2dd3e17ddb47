"""Runs the command lines in this process: the same entry points, arguments, output and exit codes as in a shell."""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest

import eval as eval_script
import train as train_script
from infvit import cli as command_line

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
