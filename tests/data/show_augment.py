"""A page of augmented photographs next to timm's, for the eye.

    python -m tests.data.show_augment OUT.png

Above: each operation at magnitude 9 in four pictures: the photograph, timm's result in Pillow, ours, and the
difference, eight times enlarged about grey; two operations a row, in the order of OPERATIONS. Below: a batch after
RandAugment and RandomErasing as in training, timm's to the left, ours to the right, with draws of their own.
"""

import random
import sys

import torch
from timm.data.random_erasing import RandomErasing as TimmErasing
from torch import Tensor
from torchvision.utils import make_grid, save_image

from data.augment import RandAugment, RandomErasing
from data.augment.operations import OPERATIONS, Operation
from tests.data import timm_in_pillow
from tests.data.photographs import photographs, random_keys
from tests.data.timm_in_pillow import to_pil, to_tensor


def compared(op: Operation, image: Tensor) -> list[Tensor]:
    """The photograph, timm's result, ours and their difference; timm draws the sign."""
    theirs = timm_in_pillow.operation(op.name, image, 9.0, "bicubic").float()
    both = [op(image[None], torch.tensor([sign * 9.0]))[0].float() for sign in ((1, -1) if op.signed else (1,))]
    ours = min(both, key=lambda candidate: (candidate - theirs).abs().mean().item())
    return [image.float(), theirs, ours, (128 + 8 * (ours - theirs)).clamp(0, 255)]


def augmented(images: Tensor) -> list[Tensor]:
    """timm's and our training augmentation of the same photographs, as values to be shown."""
    policy = timm_in_pillow.rand_augment()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    theirs = torch.stack([to_tensor(policy(to_pil(image))) for image in images])
    keys = random_keys(len(images))
    timms = TimmErasing(0.25, mode="pixel", device="cpu")((theirs / 255 - mean) / std)
    ours = RandomErasing()((RandAugment()(images.clone(), keys) / 255 - mean) / std, keys)
    return [((batch * std + mean) * 255).clamp(0, 255) for batch in (timms, ours)]


if __name__ == "__main__":
    torch.manual_seed(0)
    random.seed(0)
    images = photographs(64, 120, 120)
    pictures = [picture for op in OPERATIONS for picture in compared(op, images[0])]
    pictures += [torch.full((3, 120, 120), 255.0)] * (-len(pictures) % 8)
    theirs, ours = augmented(images)
    for row in range(0, 64, 4):
        pictures += [*theirs[row : row + 4], *ours[row : row + 4]]
    save_image(make_grid(pictures, nrow=8, pad_value=255) / 255, sys.argv[1])
