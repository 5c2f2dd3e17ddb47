"""Several ranks together see what one process sees: the same images, augmented alike, and the same metrics."""

import multiprocessing

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port

from tests.data import processes


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return processes.run(tmp_path_factory.mktemp("alone"))


@pytest.mark.parametrize("world", [2, 3])
def test_processes_see_what_one_sees(world, alone, tmp_path):
    # A fork server, as importing everything in each process takes many seconds, and this process cannot be forked if
    # another test has started torch's threads of backward passes.
    multiprocessing.set_forkserver_preload(["tests.data.processes"])
    torch.multiprocessing.start_processes(
        processes.process, (world, find_free_network_port(), tmp_path), nprocs=world, start_method="forkserver"
    )
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(world)]
    assert [part["rank"] for part in parts] == list(range(world))
    assert all(torch.equal(part["weights"], alone["weights"]) for part in parts)

    seen = {}
    for part in parts:
        assert not seen.keys() & part["images"].keys()
        seen |= part["images"]
    assert len({len(part["images"]) for part in parts}) == 1
    assert seen.keys() == alone["images"].keys()
    assert all(torch.equal(seen[key], pixels) for key, pixels in alone["images"].items())

    for part in parts:
        assert part["metrics"] == pytest.approx(alone["metrics"], abs=1e-6)
