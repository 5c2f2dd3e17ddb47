"""Several processes see together what one sees alone: the same images, augmented alike, and the same metrics."""

import socket

import pytest
import torch

from data.torch_loader import TorchReader
from tests.data import processes


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.parametrize(("world", "ffcv"), [(2, True), (3, False)], ids=["2-ffcv", "3-torch"])
def test_processes_see_what_one_sees(world, ffcv, tmp_path):
    reader = TorchReader()
    if ffcv:
        pytest.importorskip("ffcv")
        from data.ffcv_loader import FFCVReader

        reader = FFCVReader()
    alone = processes.run(reader, tmp_path)
    torch.multiprocessing.spawn(processes.process, (world, free_port(), ffcv, tmp_path), nprocs=world)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    assert [part["rank"] for part in parts] == list(range(world))
    assert all(torch.equal(part["weights"], alone["weights"]) for part in parts)

    seen = {}
    for part in parts:
        assert not seen.keys() & part["seen"].keys()
        seen |= part["seen"]
    assert len({len(part["seen"]) for part in parts}) == 1
    assert seen.keys() == alone["seen"].keys()
    assert all(torch.equal(seen[key], pixels) for key, pixels in alone["seen"].items())

    for part in parts:
        assert part["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
