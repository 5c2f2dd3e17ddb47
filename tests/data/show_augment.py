"""A page of augmented photographs next to timm's, for the eye.

    python -m tests.data.show_augment OUT.png

Above: each operation at magnitude 9 in three columns: the photograph, timm's result in Pillow, ours; a fourth shows
their difference, eight times enlarged about grey. Below: a batch after RandAugment and RandomErasing as in training,
timm's to the left, ours to the right, with draws of their own.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path

import torch
from PIL import Image, ImageDraw
from timm.data.random_erasing import RandomErasing as TimmErasing
from torch import Tensor

from data.augment import RandAugment, RandomErasing
from data.augment.operations import OPERATIONS
from tests.data import timm_in_pillow
from tests.data.photographs import photographs
from tests.data.timm_in_pillow import to_pil, to_tensor

SIDE = 120
GAP = 4
LABEL = 14


def operations_page(image: Tensor) -> Image.Image:
    """One row of four pictures per operation, in two blocks."""
    rows = -(-len(OPERATIONS) // 2)
    block = 4 * (SIDE + GAP) + 3 * GAP
    page = Image.new("RGB", (2 * block, rows * (SIDE + GAP + LABEL)), "white")
    pen = ImageDraw.Draw(page)
    for i, op in enumerate(OPERATIONS):
        theirs = timm_in_pillow.operation(op.name, image, 9.0, "bicubic")
        # timm tosses a coin for the sign.
        ours = min(
            (op(image[None], torch.tensor([sign * 9.0]))[0] for sign in ((1, -1) if op.signed else (1,))),
            key=lambda candidate: (candidate.float() - theirs.float()).abs().mean().item(),
        )
        difference = ours.float() - theirs.float()
        enlarged = (128 + 8 * difference).clamp(0, 255).to(torch.uint8)
        left, top = i // rows * block, i % rows * (SIDE + GAP + LABEL)
        pen.text(
            (left, top), f"{op.name}: photograph, timm, ours, 8 x difference ({difference.abs().mean():.2f})", "black"
        )
        for column, picture in enumerate((image, theirs, ours, enlarged)):
            page.paste(to_pil(picture), (left + column * (SIDE + GAP), top + LABEL))
    return page


def batch_page(images: Tensor) -> Image.Image:
    """timm's and our training augmentation of the same photographs, as two blocks."""
    policy = timm_in_pillow.rand_augment()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def normalise(augmented: Tensor) -> Tensor:
        return (augmented / 255 - mean) / std

    theirs = torch.stack([to_tensor(policy(to_pil(image))) for image in images])
    columns = 8
    rows = -(-len(images) // columns)
    block = columns * (SIDE // 2 + GAP) + 3 * GAP
    page = Image.new("RGB", (2 * block, LABEL + rows * (SIDE // 2 + GAP)), "white")
    pen = ImageDraw.Draw(page)
    for side, (label, batch) in enumerate(
        (
            (
                "timm: RandAugment, normalisation, erasing",
                TimmErasing(0.25, mode="pixel", device="cpu")(normalise(theirs)),
            ),
            ("ours", RandomErasing()(normalise(RandAugment()(images.clone())))),
        )
    ):
        pen.text((side * block, 0), label, "black")
        for i, picture in enumerate(((batch * std + mean) * 255).clamp(0, 255).to(torch.uint8)):
            at = side * block + i % columns * (SIDE // 2 + GAP), LABEL + i // columns * (SIDE // 2 + GAP)
            page.paste(to_pil(picture).resize((SIDE // 2, SIDE // 2)), at)
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, metavar="OUT.png")
    out: Path = parser.parse_args().out
    torch.manual_seed(0)
    random.seed(0)
    images = photographs(64, SIDE, SIDE)
    pages = [operations_page(images[0]), batch_page(images)]
    sheet = Image.new("RGB", (max(page.width for page in pages), sum(page.height + GAP for page in pages)), "white")
    top = 0
    for page in pages:
        sheet.paste(page, (0, top))
        top += page.height + GAP
    sheet.quantize(256).save(out, optimize=True)
    print(out)


if __name__ == "__main__":
    main()
