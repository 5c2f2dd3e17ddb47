"""Several ranks together see what one process sees: the same images, augmented alike, and the same metrics."""

import os
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments.lightning import find_free_network_port
from torch import Tensor, nn

from callbacks.epoch_seed import EpochSeed
from data.augment import RandAugment, RandomErasing
from data.datamodule import ImageDataModule
from data.datasets.digits import Digits
from data.view import View
from infvit.cli.devices import seed_run
from infvit.module import Classifier
from infvit.schedule import warmup_cosine
from tests.data.digits_run import datamodule, trainer
from tests.ranks import run_ranks

VALIDATION = 361
"""Images to test on: a number that neither two nor three processes divide."""


class Recording(ImageDataModule):
    """Keeps the model's training images by their keys."""

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        images, labels = super().on_after_batch_transfer(batch, dataloader_idx)
        if len(batch) == 3:
            self.taken = getattr(self, "taken", {}) | dict(zip(batch[2].tolist(), images, strict=True))
        return images, labels


def run(cache: Path, world: int = 1) -> dict:
    """Returns initial weights, the images of an epoch, and the metrics of the untrained model, of this process."""
    seed_run(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 64, 10))
    weights = net[1].weight.detach().clone()
    view = View(8, crop_scale=(0.3, 1.0), flip=True)
    how = {"batch_size": 72, "eval_batch_size": 50, "augment": RandAugment(), "erasing": RandomErasing(), "repeats": 3}
    data = datamodule(cache, source=Digits(VALIDATION / 1797), kind=Recording, view=view, seed=3, **how)
    module = Classifier(net, 10, sgd, warmup_cosine, epochs=1, batch_size=72, base_lr=0.0)
    strategy = "ddp" if world > 1 else "auto"
    fit = trainer(devices=world, strategy=strategy, max_epochs=1, limit_val_batches=0, callbacks=[EpochSeed(3)])
    fit.fit(module, datamodule=data)
    metrics = fit.test(module, datamodule=data, verbose=False)[0]
    return {"rank": fit.global_rank, "weights": weights, "images": data.taken, "metrics": metrics}


def sgd(net: nn.Module, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(net.parameters(), lr)


def process(rank: int, world: int, port: int, folder: Path) -> None:
    """One of `world` processes; saves the result of `run` in `folder`."""
    torch.set_num_threads(1)
    place = {"LOCAL_RANK": rank, "NODE_RANK": 0, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in place.items()}
    torch.save(run(folder, world), folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return run(tmp_path_factory.mktemp("alone"))


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 3])
def test_processes_see_what_one_sees(world, alone, tmp_path):
    run_ranks(process, (world, find_free_network_port(), tmp_path), world)
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
