"""How many images a second each way of reading gives, on 2,000 JPEGs of 500 x 375 made from real photographs.

    python -m tests.data.bench_loader [--rounds 7]

Bare FFCV (its own decoder, random crop and flip, batches thrown away), our ImageDataModule on FFCV, the same JPEGs by a
torch DataLoader with PIL and timm's transforms of DeiT's recipe, and the device's side of our augmentation alone
(RandAugment, normalisation, random erasing). Whole epochs, with PIL two batches, in turns, so that what else the
machine does falls on all; compiling and the first epoch are kept out. Prints medians of images a second and of the
rounds' ratios to bare FFCV. The reading takes one core; leave another one to the process itself, which
copies the batches.
"""

import argparse
import itertools
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from timm.data import create_transform
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder as TorchvisionFolder

from data.augment import RandAugment, RandomErasing
from data.beton.encoding import BetonSettings
from data.beton.files import beton_path
from data.beton.loader import FFCVReader
from data.datamodule import ImageDataModule
from data.datasets.imagefolder import ImageFolder
from data.view import View
from tests.data import timm_in_pillow
from tests.data.photographs import photographs

JPEG = BetonSettings(mode="jpg", max_resolution=500, quality=90)
BATCH = 256
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def make_tree(root: Path) -> None:
    """2,000 JPEGs of 500 x 375 for training, in 10 classes, and one of each for validation."""
    for part, count in (("train", 2000), ("val", 10)):
        for start in range(0, count, 100):
            for i, pixels in enumerate(photographs(min(100, count - start), 375, 500, seed=start), start):
                folder = root / part / f"class{i % 10}"
                folder.mkdir(parents=True, exist_ok=True)
                timm_in_pillow.to_pil(pixels).save(folder / f"{i}.jpg", quality=90)


def datamodule(tree: Path) -> ImageDataModule:
    """As conf/data/imagenet.yaml and conf/recipe/deit.yaml compose it, attached to a trainer that trains."""
    data = ImageDataModule(
        "bench",
        ImageFolder(str(tree), str(tree / "cache")),
        FFCVReader(),
        View(224, crop_scale=(0.08, 1.0), flip=True),
        BATCH,
        str(tree / "cache"),
        seed=0,
        mean=MEAN,
        std=STD,
        workers=1,
        beton=JPEG,
        augment=RandAugment(),
        erasing=RandomErasing(),
    )
    data.trainer = Trainer(accelerator="auto", devices=1, logger=False, enable_checkpointing=False)
    data.prepare_data()
    data.trainer.training = True
    return data


def bare_ffcv(data: ImageDataModule) -> Iterable:
    """FFCV's own loader on the same file."""
    from ffcv.fields.decoders import IntDecoder, RandomResizedCropRGBImageDecoder
    from ffcv.loader import Loader, OrderOption
    from ffcv.transforms import RandomHorizontalFlip, Squeeze, ToDevice, ToTensor

    path = beton_path(data.source.split("train"), data.name, "train", data.cache_dir, data.beton)
    assert data.trainer is not None
    device = data.trainer.strategy.root_device
    last = [ToTensor(), *([ToDevice(device, non_blocking=True)] if device.type == "cuda" else [])]
    return Loader(
        str(path),
        batch_size=BATCH,
        num_workers=1,
        order=OrderOption.RANDOM,
        os_cache=True,
        pipelines={
            "image": [RandomResizedCropRGBImageDecoder((224, 224)), RandomHorizontalFlip(), *last],
            "label": [IntDecoder(), ToTensor(), Squeeze(1), *last[1:]],
        },
    )


def pillow(tree: Path) -> Iterable:
    """torch, PIL and timm: everything for each image in its process."""
    options = {"color_jitter": None, "interpolation": "bicubic", "re_prob": 0.25}
    transform = create_transform(224, is_training=True, mean=MEAN, std=STD, **options)
    transform.transforms.insert(2, timm_in_pillow.rand_augment())  # where timm puts it: after the flip
    folder = TorchvisionFolder(str(tree / "train"), transform)
    return DataLoader(folder, BATCH, shuffle=True, drop_last=True, num_workers=1, persistent_workers=True)


def epoch(batches: Iterable, most: int | None = None) -> Callable[[], int]:
    """Reads all of it, or `most` batches, and says how many images that was."""
    return lambda: sum(len(batch[0]) for batch in itertools.islice(batches, most))


def device_side(data: ImageDataModule, batches: Iterable) -> Callable[[], int]:
    """Augments one batch, as a run does it after the batch came to the device."""
    images, labels, keys = (part.clone() for part in next(iter(batches)))
    assert data.trainer is not None
    device = data.trainer.strategy.root_device
    batch = images.to(device), labels.to(device), keys.to(device)

    def work() -> int:
        data.on_after_batch_transfer((batch[0].clone(), *batch[1:]), 0)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return len(images)

    return work


def run(tree: Path, rounds: int) -> None:
    """Prints one row per way."""
    ours = datamodule(tree)
    train = ours.train_dataloader()
    ways = {
        "bare FFCV": epoch(bare_ffcv(ours)),
        "ImageDataModule on FFCV": epoch(train),
        "torch DataLoader, PIL, timm": epoch(pillow(tree), most=2),
        "device side, one torch thread": device_side(ours, train),
    }
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for round_ in range(rounds + 1):
        for name, work in ways.items():
            start = time.perf_counter()
            images = work()
            if round_:
                rates[name].append(images / (time.perf_counter() - start))
    print(f"{'':32s}{'images/s':>10s}{'ratio to bare FFCV':>22s}")
    for name, measured in rates.items():
        ratio = statistics.median(ours / bare for ours, bare in zip(measured, rates["bare FFCV"], strict=True))
        print(f"{name:32s}{statistics.median(measured):10.0f}{ratio:22.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder)
        make_tree(tree)
        run(tree, rounds)


if __name__ == "__main__":
    main()
