"""The work of each process of test_parallel, in a module of its own, because new processes import it by name."""

from datetime import timedelta

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from infvit.highres import TokenParallel, band
from tests.highres.conftest import small_model


def step(process, processes, folder):
    """Forward and backward of this process's band under DDP, with class token and without.

    Leaves logits, gradients and bytes in `folder`.
    """
    torch.set_num_threads(1)
    distributed.init_process_group(
        "gloo", f"file://{folder}/rendezvous", timedelta(seconds=120), world_size=processes, rank=process
    )
    images, labels = torch.load(folder / "batch.pt")
    mesh = init_device_mesh("cpu", (processes,))
    for class_token in (True, False):
        model = small_model(class_token)
        parallel = TokenParallel(model, mesh)
        top, bottom = band(images.shape[2], model.patch_size, process, processes)
        net = DistributedDataParallel(parallel)  # its hooks average the gradients as long as it lives
        logits = net(images[:, :, top:bottom])
        F.cross_entropy(logits, labels).backward()
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save((logits.detach(), gradients, parallel.communicated), folder / f"{process}_{class_token}.pt")
    distributed.destroy_process_group()
