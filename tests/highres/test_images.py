"""Windows of images against whole images, and errors for files that cannot be used."""

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image

from infvit.errors import UsageError
from infvit.highres import open_image
from infvit.highres.images import InMemory, Padded, TiffTiles, write_test_image

PIXELS = np.random.default_rng(0).integers(0, 256, (70, 93, 3), dtype=np.uint8)
WINDOWS = [(0, 70, 0, 93), (0, 16, 0, 16), (31, 33, 60, 93), (69, 70, 5, 6)]


TIFF = {"tiles": {"tile": (32, 16)}, "zlib": {"tile": (32, 32), "compression": "zlib"}, "strips": {"rowsperstrip": 8}}


def write(path, kind):
    if kind == "npy":
        np.save(path, PIXELS)
    elif kind == "png":
        Image.fromarray(PIXELS).save(path)
    else:
        tifffile.imwrite(path, PIXELS, photometric="rgb", **TIFF[kind.removesuffix(".tif")])


@pytest.mark.parametrize("kind", ["npy", "png", "tiles.tif", "zlib.tif", "strips.tif"])
def test_windows_equal_parts_of_the_whole_image(tmp_path, kind):
    path = tmp_path / f"image.{kind}"
    write(path, kind)
    image = open_image(path)
    assert (image.height, image.width) == (70, 93)
    for top, bottom, left, right in WINDOWS:
        expected = torch.from_numpy(PIXELS[top:bottom, left:right]).permute(2, 0, 1)
        assert torch.equal(image.read(top, bottom, left, right), expected)


def test_a_grey_tiff_has_three_equal_channels(tmp_path):
    tifffile.imwrite(tmp_path / "grey.tif", PIXELS[..., 0], tile=(32, 32), photometric="minisblack")
    window = open_image(tmp_path / "grey.tif").read(5, 40, 7, 50)
    assert torch.equal(window, torch.from_numpy(PIXELS[5:40, 7:50, :1]).permute(2, 0, 1).expand(3, -1, -1))


def test_a_tiff_caches_no_more_tiles_than_documented(tmp_path, monkeypatch):
    monkeypatch.setattr("infvit.highres.images.TILES_KEPT", 0)
    write(tmp_path / "image.tif", "tiles.tif")
    image = open_image(tmp_path / "image.tif")
    assert isinstance(image, TiffTiles)
    for _ in range(2):
        image.read(0, 70, 0, 93)
    assert image.tile.cache_info().currsize == 6  # the tiles across 93 pixels


def test_an_unreadable_tile_is_named(tmp_path):
    path = tmp_path / "image.tif"
    write(path, "zlib.tif")
    with tifffile.TiffFile(path) as file:
        offset = file.pages.first.dataoffsets[4]
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = bytes(20)
    path.write_bytes(content)
    image = open_image(path)
    image.read(0, 32, 0, 93)
    with pytest.raises(UsageError, match="tile in row 1, column 1"):
        image.read(32, 64, 0, 93)


def test_pillows_limit_holds_unless_allow_huge_is_set(tmp_path, monkeypatch):
    write(tmp_path / "image.png", "png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UsageError, match=r"more than 1,000 pixels.*allow_huge=true"):
        open_image(tmp_path / "image.png")
    assert open_image(tmp_path / "image.png", allow_huge=True).width == 93
    assert Image.MAX_IMAGE_PIXELS == 1000


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("gone.png", None, "does not exist"),
        ("text.png", b"no image", "cannot be read as an image"),
        ("text.tif", b"no image", "cannot be read as an image"),
        ("text.npy", b"no image", "expected a .npy file"),
    ],
)
def test_a_file_that_is_not_an_image_is_refused_in_one_line(tmp_path, name, content, line):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=line):
        open_image(tmp_path / name)


def test_arrays_of_another_shape_are_refused(tmp_path):
    np.save(tmp_path / "float.npy", np.zeros((4, 4, 3)))
    with pytest.raises(UsageError, match="expected uint8"):
        open_image(tmp_path / "float.npy")


def test_padding_is_black_and_only_below_and_right():
    image = InMemory(torch.from_numpy(PIXELS).permute(2, 0, 1))
    padded = Padded(image, 16)
    assert (padded.height, padded.width) == (80, 96)
    whole = padded.read(0, 80, 0, 96)
    assert torch.equal(whole[:, :70, :93], image.pixels)
    assert not whole[:, 70:].any()
    assert not whole[:, :, 93:].any()
    assert torch.equal(padded.read(64, 80, 80, 96), whole[:, 64:80, 80:96])


def test_the_test_image_is_tiled_and_not_flat(tmp_path):
    write_test_image(tmp_path / "image.tif", 48, 80, tile=16)
    image = open_image(tmp_path / "image.tif")
    assert isinstance(image, TiffTiles)
    assert (image.height, image.width, image.tile_height) == (48, 80, 16)
    assert image.read(0, 48, 0, 80).float().std() > 20
