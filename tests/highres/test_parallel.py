"""One image over gloo processes against one process: logits, gradients, bytes."""

from datetime import timedelta
from itertools import pairwise

import pytest
import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from infvit.highres import TokenParallel, band
from tests.highres.conftest import small_model
from tests.ranks import run_ranks

IMAGES = torch.randn(2, 3, 28, 20, generator=torch.manual_seed(1))
LABELS = torch.tensor([1, 4])

CASES = [(class_token, attention) for class_token in (True, False) for attention in ("linear_infsa", "kernel_infsa")]


def step(process, processes, folder):
    """Forward and backward of this process's band under DDP, with class token and without.

    Leaves logits, gradients and bytes in `folder`.
    """
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=120), world_size=processes, rank=process
    )
    mesh = init_device_mesh("cpu", (processes,))
    for class_token, attention in CASES:
        model = small_model(class_token, attention)
        parallel = TokenParallel(model, mesh)
        top, bottom = band(IMAGES.shape[2], model.patch_size, process, processes)
        net = DistributedDataParallel(parallel)  # its hooks average the gradients as long as it lives
        logits = net(IMAGES[:, :, top:bottom])
        F.cross_entropy(logits, LABELS).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save(
            (logits.detach(), gradients, parallel.communicated), folder / f"{process}_{class_token}_{attention}.pt"
        )
    distributed.destroy_process_group()


@pytest.fixture(scope="module", params=[2, 4])
def ran(request, tmp_path_factory):
    """The number of processes and the folder with the result of each."""
    folder = tmp_path_factory.mktemp("processes")
    run_ranks(step, (request.param, folder), request.param)
    return request.param, folder


@pytest.mark.slow
@pytest.mark.parametrize(("class_token", "attention"), CASES)
def test_forward_and_backward_equal_one_process(ran, class_token, attention):
    processes, folder = ran
    model = small_model(class_token, attention)
    logits = model(IMAGES)
    F.cross_entropy(logits, LABELS).backward()
    for process in range(processes):
        found, gradients, communicated = torch.load(folder / f"{process}_{class_token}_{attention}.pt")
        torch.testing.assert_close(found, logits, rtol=1e-5, atol=1e-5)
        for name, parameter in model.named_parameters():
            tolerance = 1e-5 * float(parameter.grad.abs().max())
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=tolerance, msg=name)
        # B images, 3 layers, H (d + 1) and H (D + 1), or H 4 d², numbers of 8 bytes, forward and backward; the mean's D
        # of 4 bytes.
        numbers = 8 + 1 + 32 + 1 if attention == "linear_infsa" else 4 * 8**2
        assert communicated == 2 * 2 * (3 * 4 * numbers * 8 + (0 if class_token else 32 * 4))


def test_bands_cover_the_image_in_whole_patches():
    for processes in range(1, 8):
        bands = [band(28, 4, i, processes) for i in range(processes)]
        assert bands[0][0] == 0
        assert bands[-1][1] == 28
        assert all(a[1] == b[0] for a, b in pairwise(bands))
        assert all(low < high and low % 4 == 0 for low, high in bands)
