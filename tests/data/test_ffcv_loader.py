"""FFCV inside a training process: it leaves the process as it was, and training on it resumes exactly."""

import threading
import time

import pytest
import torch

from data.augment import RandAugment
from data.datasets.digits import Digits
from data.order import EpochOrder
from data.view import View
from tests.data.digits_run import Recorder, datamodule, loader, trainer

pytest.importorskip("ffcv")
from data.beton.decoder import Epoch
from data.beton.loader import FFCVReader


@pytest.mark.slow
def test_torch_keeps_its_threads(cache):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        for _ in loader(FFCVReader(), cache):
            assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("batch_size", [32, 400])  # 45 batches, and so few that all are ready at once
def test_stopping_early_leaves_no_reading_thread(cache, batch_size):
    batches = iter(loader(FFCVReader(), cache, batch_size=batch_size))
    next(batches)
    batches.close()
    end = time.monotonic() + 5
    while any(isinstance(thread, Epoch) for thread in threading.enumerate()):
        assert time.monotonic() < end, "the reading thread has not ended"
        time.sleep(0.05)


def test_the_jobs_of_a_sweep_share_compiled_code_and_keep_their_orders(cache):
    labels = torch.tensor(Digits().split("train").labels)
    orders = [EpochOrder(len(labels), 32, seed=seed) for seed in (0, 1)]
    first, second = (loader(FFCVReader(), cache, order=order, batch_size=32) for order in orders)
    assert first.loader is second.loader
    for turn in range(2):  # one after the other, then again: no order is taken from the other
        for batches, order in zip((first, second), orders, strict=True):
            order.set_epoch(turn)
            assert torch.equal(torch.cat([found for _, found, _ in batches]), labels[order.indices()])
    a, b = list(first), iter(second)
    assert torch.equal(next(b)[1], labels[orders[1].indices()][:32])
    assert len(a) == 44


@pytest.mark.slow
def test_slow_compiling_is_announced_and_compiled_code_is_not_announced_again(cache, capfd, monkeypatch):
    list(loader(FFCVReader(), cache))
    capfd.readouterr()
    list(loader(FFCVReader(), cache))
    assert capfd.readouterr().out == ""
    from ffcv.loader.epoch_iterator import EpochIterator

    run = EpochIterator.run_pipeline
    monkeypatch.setattr(EpochIterator, "run_pipeline", lambda *given: (time.sleep(1.3), run(*given))[1])
    order = EpochOrder(1437, 1437, shuffle=False)
    list(loader(FFCVReader(), cache, order=order, batch_size=1437, view=View(9, 1.0)))
    assert capfd.readouterr().out.count("compiles its reading code") == 1


@pytest.mark.slow
def test_a_resumed_run_sees_the_images_of_its_epoch(cache, tmp_path):
    def module():
        view = View(8, crop_scale=(0.3, 1.0), flip=True)
        return datamodule(cache, FFCVReader(), view=view, augment=RandAugment())

    labels, order = torch.tensor(Digits().split("train").labels), EpochOrder(1437, 128, seed=0)
    whole, resumed, stopped = Recorder(), Recorder(), trainer(max_epochs=2)
    stopped.fit(Recorder(), datamodule=module())
    stopped.save_checkpoint(tmp_path / "a.ckpt")
    trainer(max_epochs=4).fit(resumed, datamodule=module(), ckpt_path=tmp_path / "a.ckpt")
    trainer(max_epochs=4).fit(whole, datamodule=module())
    assert list(resumed.trained) == [2, 3]
    for epoch, batches in resumed.trained.items():
        order.set_epoch(epoch)
        assert torch.equal(torch.cat([found for _, found in batches]), labels[order.indices()])
        for ours, theirs in zip(batches, whole.trained[epoch], strict=True):
            assert torch.equal(ours[0], theirs[0])  # crops, flips and RandAugment


def test_a_run_that_only_tests_writes_no_beton(tmp_path):
    module = Recorder()
    trainer().test(module, datamodule=datamodule(tmp_path, FFCVReader()), verbose=False)
    assert sum(map(len, module.tested)) == 360
    assert not list(tmp_path.rglob("*.beton"))
