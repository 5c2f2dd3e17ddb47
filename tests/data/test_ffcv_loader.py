"""What FFCV does to its process: nothing that a run would notice."""

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from data.augment import RandAugment
from data.beton.encoding import BetonSettings
from data.beton.files import beton_path
from data.datamodule import ImageDataModule
from data.datasets.digits import Digits
from data.order import EpochOrder
from data.view import View

pytest.importorskip("ffcv")
from data.beton.decoder import Epoch
from data.beton.loader import FFCVReader

ROOT = Path(__file__).parents[2]
RAW, CPU = BetonSettings(), torch.device("cpu")


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def loader(cache, order=None, batch_size=32, view=None):
    images, reader = Digits().split("train"), FFCVReader()
    beton = beton_path(images, "d", "train", cache, RAW)
    reader.prepare(images, beton, RAW)
    order = order or EpochOrder(len(images), batch_size)
    return reader.loader(images, beton, view or View(8, 1.0), order, batch_size, 1, CPU)


def test_torch_keeps_its_threads(cache):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        batches = iter(loader(cache))
        next(batches)
        assert torch.get_num_threads() == 2
        list(batches)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_its_import_compiles_no_dictionary_and_leaves_numba_its_own():
    asked = (
        "from data.beton.loader import FFCVReader; FFCVReader()\n"
        "from ffcv.fields.rgb_image import IMAGE_MODES; from numba import config\n"
        "print(type(IMAGE_MODES) is dict, config.DISABLE_JIT)"
    )
    told = subprocess.run([sys.executable, "-c", asked], cwd=ROOT, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["True", "0"]


@pytest.mark.parametrize("batch_size", [32, 400])  # of 45 batches, and of so few that all lie ready
def test_stopping_early_leaves_no_reading_thread(cache, batch_size):
    batches = iter(loader(cache, batch_size=batch_size))
    next(batches)
    batches.close()
    end = time.monotonic() + 5
    while any(isinstance(thread, Epoch) for thread in threading.enumerate()):
        assert time.monotonic() < end, "the reading thread has not ended"
        time.sleep(0.05)


def test_the_jobs_of_a_sweep_share_compiled_code_and_keep_their_orders(cache):
    labels = torch.tensor(Digits().split("train").labels)
    orders = [EpochOrder(len(labels), 32, seed=seed) for seed in (0, 1)]
    first, second = (loader(cache, order) for order in orders)
    assert first.loader is second.loader
    for turn in range(2):  # one after the other, then again: no order is taken from a neighbour
        for batches, order in zip((first, second), orders, strict=True):
            order.set_epoch(turn)
            assert torch.equal(torch.cat([found for _, found, _ in batches]), labels[order.indices()])
    a, b = list(first), iter(second)
    assert torch.equal(next(b)[1], labels[orders[1].indices()][:32])
    assert len(a) == 44


def test_slow_compiling_is_announced_and_compiled_code_is_not_announced_again(cache, capfd, monkeypatch):
    list(loader(cache))
    capfd.readouterr()
    list(loader(cache))
    assert capfd.readouterr().out == ""
    from ffcv.loader.epoch_iterator import EpochIterator

    run = EpochIterator.run_pipeline
    monkeypatch.setattr(EpochIterator, "run_pipeline", lambda *given: (time.sleep(1.3), run(*given))[1])
    slow = loader(cache, EpochOrder(1437, 1437, shuffle=False), batch_size=1437, view=View(9, 1.0))
    list(slow)
    said = capfd.readouterr().out
    assert said.index("compiles its reading code") < said.index("compiled its reading code in")


class Sees(LightningModule):
    """Notes the images and labels of every step, by epoch."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), {}

    def training_step(self, batch, *_):
        self.seen.setdefault(self.current_epoch, []).append(batch)
        return self.weight.sum()

    def test_step(self, batch, *_):
        self.seen.setdefault("test", []).append(batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def datamodule(cache):
    view, scale, augment = View(8, crop_scale=(0.3, 1.0), flip=True), [0.5] * 3, RandAugment()
    return ImageDataModule("d", Digits(), FFCVReader(), view, 128, str(cache), 0, scale, scale, augment=augment)


def trainer(folder, epochs=1):
    quiet = {"accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(max_epochs=epochs, default_root_dir=folder, use_distributed_sampler=False, **quiet)


def test_a_resumed_run_goes_on_with_the_images_of_its_epoch(cache, tmp_path):
    labels, order = torch.tensor(Digits().split("train").labels), EpochOrder(1437, 128, seed=0)
    whole, resumed, stopped = Sees(), Sees(), trainer(tmp_path, 2)
    stopped.fit(Sees(), datamodule=datamodule(cache))
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    trainer(tmp_path, 4).fit(resumed, datamodule=datamodule(cache), ckpt_path=tmp_path / "a.ckpt")
    trainer(tmp_path, 4).fit(whole, datamodule=datamodule(cache))
    assert list(resumed.seen) == [2, 3]
    for epoch, batches in resumed.seen.items():
        order.set_epoch(epoch)
        assert torch.equal(torch.cat([found for _, found in batches]), labels[order.indices()])
        for ours, theirs in zip(batches, whole.seen[epoch], strict=True):
            assert torch.equal(ours[0], theirs[0])  # crops, flips and RandAugment


def test_a_run_that_only_tests_writes_no_beton(tmp_path):
    seen = Sees()
    trainer(tmp_path).test(seen, datamodule=datamodule(tmp_path), verbose=False)
    assert sum(len(found) for found in seen.seen["test"]) == 360
    assert not list(tmp_path.rglob("*.beton"))
