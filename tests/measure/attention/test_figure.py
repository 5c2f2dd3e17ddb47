"""The figure for papers."""

import shutil
import subprocess

import numpy as np
import pytest
import torch
from PIL import Image

from infvit.errors import UsageError
from infvit.measure.attention.figure import CELL, GAP, GROUP_GAP, LETTER, PIXELS, figure
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
    scale, width, height = PIXELS / CELL, CELL, CELL * ROWS / COLUMNS
    lefts = [LETTER + 4 + CELL + GROUP_GAP + k * (CELL + GAP) + (k >= 2) * (GROUP_GAP - GAP) for k in range(4)]
    for row, image in enumerate(images(3)):
        top = 2 * (LETTER + 4) + row * (height + GAP)
        plain = resized(picture(image), round(width * scale), round(height * scale))
        expected = [(LETTER + 4, plain)]
        for left, (name, method) in zip(lefts, [(n, m) for n in networks for m in SHOWN], strict=True):
            model, inputs = networks[name].model, normalised(networks[name], images(3))
            expected.append((left, over(plain, token_map(model, inputs, method, block=block)[row])))
        for left, cell in expected:
            box = [(left + 1) * scale, (top + 1) * scale, (left + 1 + width) * scale, (top + 1 + height) * scale]
            found = np.asarray(drawn.crop([round(edge) for edge in box]).resize(cell.size), dtype=float)
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
