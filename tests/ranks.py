"""Starts ranks for a test: processes forked from a server that has imported everything, which takes many seconds."""

import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

ROOT = Path(__file__).parents[1]


def run_ranks(function: Callable[..., None], arguments: tuple[Any, ...], ranks: int) -> None:
    """Calls `function(rank, *arguments)` in each rank, and waits for all; the test's own process cannot be forked.

    Raises:
        Exception: a rank failed.
    """
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):  # the server has no other path
        multiprocessing.set_forkserver_preload(["tests.conftest"])
        torch.multiprocessing.start_processes(function, arguments, ranks, start_method="forkserver")
