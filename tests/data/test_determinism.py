"""What happens to an image at random depends on (seed, epoch, image, which of its repeats) and on nothing else."""

import itertools
import math
from collections.abc import Iterable

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import RandomResizedCrop

from data.augment import RandAugment, RandomErasing
from data.beton.encoding import BetonSettings
from data.draws import CROP, NOISE, advance, normals, sample_keys, uniforms
from data.order import EpochOrder
from data.torch_loader import TorchReader
from data.view import View, random_boxes
from tests.data.digits_run import loader
from tests.data.photographs import photographs, random_keys
from tests.data.timm_in_pillow import to_pil

VIEW = View(24, crop_scale=(0.08, 1.0), flip=True)


class Photographs:
    """Images of two sizes in memory, labelled by their number."""

    def __init__(self, n: int) -> None:
        self.images = [*map(to_pil, photographs(n // 2, 48, 64)), *map(to_pil, photographs(n - n // 2, 60, 40, seed=1))]
        self.labels = np.arange(n)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], index

    def fingerprint(self) -> str:
        return f"photographs {len(self)}"


@pytest.fixture(scope="module")
def images() -> Photographs:
    return Photographs(40)


def seen(loaders: Iterable) -> dict[tuple[int, int], torch.Tensor]:
    """The pixels of every image of an epoch over all processes, augmented, by (label, key)."""
    augment, erasing, found = RandAugment(), RandomErasing(0.5), {}
    for batches in loaders:
        for pixels, labels, keys in batches:
            pixels = erasing(augment(pixels, keys) / 255, keys)
            found |= {(int(k), int(y)): x for x, y, k in zip(pixels, labels, keys, strict=True)}
    return found


@pytest.mark.slow
def test_pixels_do_not_depend_on_threads_processes_or_batches(reader, images, cache):
    def epoch(world=1, batch_size=6, workers=1, epoch=0, seed=0, step=36):
        for rank in range(world):
            order = EpochOrder(len(images), step, seed, rank=rank, world_size=world, repeats=3)
            order.set_epoch(epoch)
            yield loader(reader, cache, images, VIEW, order, batch_size, workers)

    whole = seen(epoch())
    assert len(whole) == 36
    for other in (epoch(batch_size=7), epoch(workers=2), epoch(world=2, step=12), epoch(world=3, batch_size=4)):
        again = seen(other)
        assert again.keys() == whole.keys()
        assert all(torch.equal(again[place], whole[place]) for place in whole)
    for other in (epoch(epoch=1), epoch(seed=1)):
        assert not whole.keys() & seen(other).keys()
    views = [x for (_, label), x in whole.items() if label == max(label for _, label in whole)]
    assert len(views) == 3
    assert not any(torch.equal(a, b) for a, b in itertools.combinations(views, 2))


@pytest.mark.slow
def test_both_loaders_crop_and_flip_alike(ffcv, images, cache):
    order = EpochOrder(len(images), 40)
    view = View(24, crop_scale=(0.4, 1.0), flip=True)
    jpg = BetonSettings("jpg", 500)
    batches = [
        next(iter(loader(reader, cache, images, view, order, 40, settings=jpg))) for reader in (ffcv, TorchReader())
    ]
    assert torch.equal(batches[0][1], batches[1][1])
    ours, theirs = (pixels.float() for pixels, *_ in batches)
    assert (ours - theirs).abs().mean((1, 2, 3)).max() < 8  # area against bicubic
    assert (ours - theirs.flip(3)).abs().mean((1, 2, 3)).min() > 8


def naive_box(key, width, height, scale, ratio=(3 / 4, 4 / 3)):
    """torchvision's rule for one image, with our numbers."""
    numbers = uniforms(key.view(1), CROP, 40).double().view(4, 10)
    for size, shape, x, y in numbers.T.tolist():
        area = width * height * (scale[0] + (scale[1] - scale[0]) * size)
        aspect = math.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return [int(x * (width - w + 1)), int(y * (height - h + 1)), w, h]
    w, h = min(width, round(height * ratio[1])), min(height, round(width / ratio[0]))
    return [(width - w) // 2, (height - h) // 2, w, h]


@pytest.mark.parametrize("scale", [(0.08, 1.0), (0.9, 1.0)])
def test_boxes_are_those_of_the_rule(scale):
    n, rng = 300, np.random.default_rng(0)
    keys = sample_keys(0, 0, torch.arange(n), torch.zeros(n, dtype=torch.int64))
    # Long and thin ones too, in which no box fits.
    widths, heights = (torch.from_numpy(rng.choice([10, 33, 375, 500, 4000], n)) for _ in range(2))
    ours = random_boxes(keys, widths, heights, scale)
    naive = [naive_box(k, w, h, scale) for k, w, h in zip(keys, widths.tolist(), heights.tolist(), strict=True)]
    assert ours.tolist() == naive


def test_boxes_and_flips_are_distributed_as_torchvisions():
    n = 4000
    keys = random_keys(n)
    ours = random_boxes(keys, torch.full((n,), 500), torch.full((n,), 375), (0.08, 1.0)).double()
    image = torch.empty(3, 375, 500)
    draws = [RandomResizedCrop.get_params(image, (0.08, 1.0), (3 / 4, 4 / 3)) for _ in range(n)]
    theirs = torch.tensor(draws, dtype=torch.float64)[:, [1, 0, 3, 2]]
    for moment in (lambda b: b, lambda b: b.square(), lambda b: b[:, 2:3] * b[:, 3:]):
        a, b = moment(ours), moment(theirs)
        assert ((a.mean(0) - b.mean(0)).abs() < 4.5 * ((a.var(0) + b.var(0)) / n).sqrt()).all()
    assert abs(VIEW.flips(keys).double().mean() - 0.5) < 0.04


def test_numbers_are_those_of_splitmix_and_keys_do_not_meet():
    reference, state = [], 1234567
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        z = (state ^ state >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
        reference.append(((z ^ z >> 31) >> 40) / 2**24)
    assert uniforms(torch.tensor([1234567]), 1, 3).flatten().tolist() == reference
    n = 100_000
    images, first = torch.arange(n), torch.zeros(n, dtype=torch.int64)
    places = ((0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0))
    keys = [sample_keys(seed, epoch, images, first + repeat) for seed, epoch, repeat in places]
    assert len(torch.cat(keys).unique()) == 4 * n
    noise = normals(keys[0], torch.tensor(NOISE))
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    assert torch.equal(normals(advance(keys[0], torch.tensor(NOISE)), torch.tensor(0)), noise)


@pytest.mark.parametrize("augment", [RandAugment(), RandomErasing(0.5)], ids=lambda a: type(a).__name__)
def test_the_augmentation_of_an_image_does_not_depend_on_its_neighbours(augment):
    batch, keys = photographs(70, 40, 48), random_keys(70)
    batch = batch if not isinstance(augment, RandomErasing) else batch / 255
    whole, some = augment(batch.clone(), keys), torch.tensor([69, 3, 12])
    assert torch.equal(augment(batch[some], keys[some]), whole[some])
    assert not torch.equal(augment(batch.clone(), keys.roll(1)), whole)
