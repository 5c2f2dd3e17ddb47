"""One decoder for every reader of images, and one walk of a folder."""

import os

import numpy as np
import pytest
import tifffile
from PIL import Image

from data.datasets.imagefolder import ImageFolder
from data.datasets.source import Source
from infvit.errors import UsageError
from infvit.highres import open_image
from infvit.image_file import BadImageError, decode, files_in

GREY = np.linspace(0, 255, 24 * 32).astype(np.uint8).reshape(24, 32)
RGB = np.stack([GREY, 255 - GREY, GREY // 2], -1)
AS_RGB = np.repeat(GREY[..., None], 3, 2)
WIDE = {"dtype": np.uint16}

SAME = {
    "grey of 16 bits": ("png", GREY, WIDE, AS_RGB),
    "pgm of 16 bits": ("pgm", GREY, WIDE, AS_RGB),
    "TIFF of 16 bits": ("tif", GREY, WIDE | {"photometric": "minisblack"}, AS_RGB),
    "big-endian TIFF of 16 bits": ("tif", GREY, WIDE | {"photometric": "minisblack", "byteorder": ">"}, AS_RGB),
    "white is zero": ("tif", 255 - GREY, {"photometric": "miniswhite"}, AS_RGB),
    "white is zero, compressed": ("tif", 255 - GREY, {"photometric": "miniswhite", "compression": "zlib"}, AS_RGB),
    "white is zero, 16 bits": ("tif", 255 - GREY, WIDE | {"photometric": "miniswhite"}, AS_RGB),
    "TIFF of colours of 16 bits": ("tif", RGB, WIDE | {"photometric": "rgb"}, RGB),
    "TIFF of planes": ("tif", RGB.transpose(2, 0, 1).copy(), {"photometric": "rgb", "planarconfig": 2}, RGB),
    "turned TIFF": ("tif", RGB, {"photometric": "rgb", "extratags": [(274, "H", 1, 6, True)]}, np.rot90(RGB, -1)),
    "LZW": ("tif", RGB, {"lzw": True}, RGB),
}
"""An image's format, what is stored, how, and the pixels that it means."""


def write(path, stored, dtype=np.uint8, lzw=False, **options):
    stored = stored.astype(dtype) * (257 if dtype == np.uint16 else 1)
    if lzw or path.suffix != ".tif":
        Image.fromarray(stored).save(path, **({"compression": "tiff_lzw"} if lzw else {}))
    else:
        tifffile.imwrite(path, stored, **options)


@pytest.mark.parametrize("kind", SAME)
def test_training_prediction_and_windows_read_the_same_pixels(tmp_path, kind):
    suffix, stored, options, expected = SAME[kind]
    folder = tmp_path / "tree" / "val" / "a"
    folder.mkdir(parents=True)
    path = folder / f"image.{suffix}"
    write(path, stored, **options)
    source = ImageFolder(str(tmp_path / "tree"), cache_dir=str(tmp_path / "cache"))
    assert np.array_equal(source.split("val")[0][0], expected)
    image = open_image(path)
    window = image.read(0, image.height, 0, image.width).permute(1, 2, 0).numpy()
    assert np.array_equal(window, expected)


@pytest.mark.parametrize(
    ("name", "stored", "line"),
    [
        ("float.tif", GREY.astype(np.float32), "TIFF of mode F has no meaning as 8-bit RGB"),
        ("signed.tif", GREY.astype(np.int16), "TIFF of mode I has no meaning as 8-bit RGB"),
    ],
)
def test_numbers_without_a_known_range_are_refused_by_name(tmp_path, name, stored, line):
    tifffile.imwrite(tmp_path / name, stored, photometric="minisblack")
    with pytest.raises(BadImageError, match=line):
        decode((tmp_path / name).read_bytes())
    with pytest.raises(UsageError, match=line):
        open_image(tmp_path / name)


def test_whatever_pillow_raises_on_a_damaged_image_is_one_error(monkeypatch):
    def broken(*_):
        raise RuntimeError("Failed to decode frame 0")  # of an AVIF that is named .jpg

    monkeypatch.setattr("infvit.image_file.Image.open", broken)
    with pytest.raises(BadImageError, match="RuntimeError: Failed to decode frame 0"):
        decode(b"")


def make_tree(root):
    for name in ("a", "b"):
        folder = root / "val" / name
        folder.mkdir(parents=True)
        for i in range(3):
            Image.fromarray(RGB).save(folder / f"{i}.png")


def loaded(root, tmp_path) -> Source:
    return ImageFolder(str(root), cache_dir=str(tmp_path / "cache"))


@pytest.mark.parametrize("target", [".", "..", "../..", "inner"])
def test_a_link_to_a_folder_around_it_adds_no_image(tmp_path, target):
    make_tree(tmp_path / "tree")
    folder = tmp_path / "tree" / "val" / "b"
    (folder / "inner").mkdir()
    Image.fromarray(RGB).save(folder / "inner" / "3.png")
    (folder / "link").symlink_to(target)
    assert loaded(tmp_path / "tree", tmp_path).split("val").labels.tolist() == [0] * 3 + [1] * 4
    assert len(list(files_in(folder))) == 4


def test_a_link_to_another_disk_is_followed(tmp_path):
    make_tree(tmp_path / "tree")
    (tmp_path / "tree" / "val" / "b").rename(tmp_path / "elsewhere")
    (tmp_path / "tree" / "val" / "b").symlink_to(tmp_path / "elsewhere")
    assert loaded(tmp_path / "tree", tmp_path).split("val").labels.tolist() == [0] * 3 + [1] * 3


@pytest.mark.parametrize("name", [".ipynb_checkpoints", "__MACOSX", "@eaDir"])
def test_copies_that_systems_leave_are_not_images(tmp_path, name):
    make_tree(tmp_path / "tree")
    for folder in (tmp_path / "tree" / "val", tmp_path / "tree" / "val" / "a"):
        (folder / name).mkdir()
        Image.fromarray(RGB).save(folder / name / "copy.png")
    source = loaded(tmp_path / "tree", tmp_path)
    assert source.classes == ["a", "b"]
    assert len(source.split("val")) == 6


def test_files_with_other_endings_are_counted_and_named_once(tmp_path):
    make_tree(tmp_path / "tree")
    for name in ("a/0.heic", "a/1.heic", "b/0.jp2"):
        (tmp_path / "tree" / "val" / name).write_bytes(b"image")
    with pytest.warns(UserWarning, match=r"val: 3 files are passed over \(2 \.heic, 1 \.jp2\)") as warned:
        assert len(loaded(tmp_path / "tree", tmp_path).split("val")) == 6
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda val: (val / "c").symlink_to("a"), "val/c and a are one folder"),
        (lambda val: (val / "c").symlink_to("."), "val/c and val are one folder"),
        (lambda val: os.mkdir(os.fsencode(val) + b"/\xff"), r"class folder '\\udcff': expected a name of printable"),
        (lambda val: (val / "a\nb").mkdir(), r"class folder 'a\\nb': expected a name of printable"),
    ],
    ids=["twins", "loop", "not UTF-8", "newline"],
)
def test_a_class_folder_that_cannot_be_a_class_is_refused(tmp_path, make, line):
    make_tree(tmp_path / "tree")
    make(tmp_path / "tree" / "val")
    with pytest.raises(UsageError, match=line):
        loaded(tmp_path / "tree", tmp_path)
