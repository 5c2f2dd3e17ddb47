"""The two loaders of the DataModule: the same samples, labels and, uncompressed, the same pixels."""

import os
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data.beton.files import beton_path
from data.datasets.digits import Digits
from data.order import EpochOrder
from data.torch_loader import TorchReader
from data.view import View
from infvit.errors import UsageError
from tests.data.digits_run import RAW, datamodule, loader, trainer


@pytest.mark.slow
@pytest.mark.parametrize("split", ["train", "val"])
def test_both_give_the_same_digits_in_the_same_order(ffcv, cache, split):
    images, training = Digits().split(split), split == "train"
    order = EpochOrder(len(images), 128, seed=3, shuffle=training)
    order.set_epoch(4)
    batches = [list(loader(reader, cache, images, order=order)) for reader in (ffcv, TorchReader())]
    assert len(batches[0]) == len(batches[1]) == (22 if training else 6)
    for ours, theirs in zip(*batches, strict=True):
        assert ours[0].dtype == torch.uint8
        assert ours[0].shape[1:] == (3, 8, 8)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
    labels, *keys = (torch.cat(parts) for parts in list(zip(*batches[0], strict=True))[1:])
    assert torch.equal(labels, torch.tensor(images.labels[order.indices()]))
    assert [key.tolist() for key in keys] == ([order.keys().tolist()] if training else [])


@pytest.mark.slow
def test_ffcv_batches_stay_what_they_were(ffcv, cache):
    """Its buffers are a ring: without a copy, a batch kept for some steps turns into a later one."""
    images = Digits().split("train")
    order = EpochOrder(len(images), 32, seed=0)
    kept = list(loader(ffcv, cache, images, order=order, batch_size=32))
    again = [(b[0].clone(), b[1].clone()) for b in loader(ffcv, cache, images, order=order, batch_size=32)]
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(kept, again, strict=True))


def test_a_file_that_changes_while_ffcv_reads_it_is_an_error_and_one_that_is_removed_is_read_to_its_end(ffcv, cache):
    images = Digits().split("train")
    path = beton_path(images, "test", "train", cache, RAW)
    aside = path.with_suffix(".aside")
    order = EpochOrder(len(images), 64)
    batches = loader(ffcv, cache, images, order=order)
    next(iter(batches))
    path.rename(aside)
    try:
        assert len(list(batches)) == len(batches)
    finally:
        aside.rename(path)
    reading, about = iter(batches), path.stat()
    next(reading)
    os.utime(path, ns=(0, 0))
    try:
        with pytest.raises(UsageError, match="has changed while the run reads it"):
            next(reading)
    finally:
        os.utime(path, ns=(about.st_atime_ns, about.st_mtime_ns))


@pytest.mark.parametrize("shape", [(70, 51, 3), (24, 33, 3)], ids=["smaller", "larger"])
def test_the_exact_view_is_torchvisions(shape):
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
    theirs = v2.Compose([v2.Resize(36, v2.InterpolationMode.BICUBIC), v2.CenterCrop(32), v2.PILToTensor()])
    assert torch.equal(View(32)(image), theirs(image))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "error", "says"),
    [
        (lambda *_: 1 / 0, RuntimeError, "reading thread died"),
        (lambda *_: time.sleep(4), UsageError, r"FFCV's reading thread gave no batch of .*\.beton for 1 s: it hangs"),
    ],
    ids=["dies", "hangs"],
)
def test_a_reading_thread_that_dies_or_hangs_is_an_error(ffcv, tmp_path, monkeypatch, fault, error, says):
    from ffcv.loader.epoch_iterator import EpochIterator

    images = Digits().split("val")
    batches = loader(replace(ffcv, timeout=1), tmp_path, images, order=EpochOrder(len(images), 64, shuffle=False))
    monkeypatch.setattr(EpochIterator, "run_pipeline", fault)
    monkeypatch.setattr("threading.excepthook", lambda _: None)
    with pytest.raises(error, match=says):
        list(batches)


def attached(module, **options):
    module.trainer = trainer(**options)
    return module


def test_the_batch_is_global_and_must_divide(cache):
    module = attached(datamodule(cache), accumulate_grad_batches=4)
    assert next(iter(module.train_dataloader()))[0].shape[0] == 32
    with pytest.raises(UsageError, match=r"batch_size=128 does not divide .* 3 accumulated .* multiple of 3"):
        attached(datamodule(cache), accumulate_grad_batches=3).train_dataloader()
    with pytest.raises(UsageError, match=r"5000 .* 1437"):
        datamodule(cache, batch_size=5000)


def test_augmentation_acts_on_bytes_in_training_alone_and_erasing_on_normalised_images(cache):
    seen = []

    def spy(name):
        def transform(images, keys):
            seen.append((name, images.min(), images.max(), keys.tolist()))
            return images

        return transform

    module = attached(datamodule(cache, augment=spy("a"), erasing=spy("b")))
    pixels = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 8, 8)
    batch = (pixels, torch.zeros(2), torch.tensor([7, 9]))
    images, _ = module.on_after_batch_transfer(batch, 0)
    assert not seen
    assert (images.min(), images.max()) == (-1, 1)
    module.trainer.training = True
    module.on_after_batch_transfer(batch, 0)
    assert seen == [("a", 0, 255, [7, 9]), ("b", -1, 1, [7, 9])]


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "workers"), [("ffcv", 2), ("torch", 0), ("torch", 2)], indirect=["reader"])
def test_a_resumed_epoch_starts_with_the_next_batch_and_the_following_epoch_is_whole(reader, cache, workers):
    images = Digits().split("train")
    order = EpochOrder(len(images), 128, seed=3)

    def labels():
        return [batch[1].tolist() for batch in batches]

    batches = loader(reader, cache, images, order=order, batch_size=128, workers=workers)
    order.set_epoch(2)
    whole = labels()
    order.set_epoch(3)
    following = labels()
    order.resume(2, 4 * 128)
    batches = loader(reader, cache, images, order=order, batch_size=128, workers=workers)
    assert len(batches) == len(whole)
    assert labels() == whole[4:]
    order.set_epoch(3)
    assert labels() == following
