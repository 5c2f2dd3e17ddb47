"""The figure for papers."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from infvit.errors import UsageError
from infvit.measure.attention.figure import CELL, GAP, GROUP_GAP, PIXELS, figure
from infvit.measure.attention.gallery_input import GalleryInput, normalised
from infvit.measure.attention.heat import over, picture, resized
from infvit.measure.attention.maps import token_map
from tests.measure.attention.gallery_cases import COLUMNS, EVIL, ROWS, images, network

SHOWN = ["attention", "katz_in"]


def draw(folder, networks, pixels, block=-1):
    names = ["one", "two", "three"][: len(pixels)]
    figure(None, folder, lambda _: GalleryInput(networks, pixels, names), SHOWN, block)
    return folder / "figure.pdf", folder / "figure.png"


@pytest.mark.parametrize("block", [0, None])
def test_images_are_rows_and_models_and_methods_columns(tmp_path, block):
    networks = {"pure": network("infsa"), "linear": network("linear_infsa")}
    pdf, png = draw(tmp_path, networks, images(3), block)
    drawn = Image.open(png).convert("RGB")
    ink = (np.asarray(drawn) < 250).any(-1)
    top, left = (int((ink.mean(axis) > 0.5).argmax()) for axis in (1, 0))  # text covers less of a line
    scale, size = PIXELS // CELL, (PIXELS, PIXELS * ROWS // COLUMNS)
    groups = [0, 1, 1, 2, 2]  # the image, and the methods of each model
    lefts = [left + scale * (k * (CELL + GAP) + group * GROUP_GAP) for k, group in enumerate(groups)]
    for row, image in enumerate(images(3)):
        expected = [resized(picture(image), *size)]
        for name, method in [(name, method) for name in networks for method in SHOWN]:
            model, inputs = networks[name].model, normalised(networks[name], images(3))
            expected.append(over(expected[0], token_map(model, inputs, method, block=block)[row]))
        y = top + row * (size[1] + scale * GAP)
        for x, cell in zip(lefts, expected, strict=True):
            found = np.asarray(drawn.crop((x, y, x + size[0], y + size[1])), dtype=float)
            assert np.abs(found - np.asarray(cell, dtype=float)).mean() < 4
    assert pdf.read_bytes().startswith(b"%PDF")


@pytest.mark.skipif(shutil.which("pdftotext") is None, reason="no pdftotext here: apt-get install poppler-utils")
def test_text_in_the_pdf_is_text(tmp_path):
    networks = {"pure": network("infsa"), EVIL: network("linear_infsa")}
    pdf, _ = draw(tmp_path, networks, images())
    words = subprocess.run(["pdftotext", "-layout", pdf, "-"], capture_output=True, text=True, check=True).stdout
    for word in ("pure", "</script><script>", "one", "two", "katz in", "image", "the map's largest"):
        assert word in words
    assert words.count("attention") == 2


def test_a_broken_model_and_a_missing_block_are_refused(tmp_path):
    broken = network("infsa")
    with pytest.raises(UsageError, match="block=2 is out of range"):
        draw(tmp_path, {"a": broken}, images(), block=2)
    torch.nn.init.constant_(broken.model.blocks[0].attn.qkv.weight, torch.nan)
    with pytest.raises(UsageError, match="a: attention is not finite"):
        draw(tmp_path, {"a": broken}, images())
