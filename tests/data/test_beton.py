"""FFCV's files: what cannot be written or read is an error that names the file, never an endless wait."""

import json
import multiprocessing
import os
import re
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from data.beton.encoding import BetonSettings
from data.beton.files import beton_path, check_beton, write_beton
from data.datasets.digits import Digits
from data.datasets.imagefolder import ImageFolder
from infvit.errors import UsageError

pytest.importorskip("ffcv")
RAW = BetonSettings()


class Made:
    """`count` tiny images; image 2 is what `broken` returns or raises."""

    def __init__(self, broken=lambda: None, count=4):
        self.broken, self.labels = broken, np.zeros(count, dtype=np.int64)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return (self.broken() if index == 2 else None) or Image.new("RGB", (8, 8)), 0

    def fingerprint(self):
        return "made"


def large():
    return Image.new("RGB", (2500, 2000))


def corrupt():
    raise ValueError("no picture in here")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (large, r"8 MiB.*max_resolution"),
        (corrupt, "no picture in here.*image 2"),
        (killed, "DataLoader worker.*enough memory"),
    ],
)
def test_a_writer_that_fails_says_why_and_leaves_nothing(tmp_path, broken, says):
    path = tmp_path / "a.beton"
    error = ThreadPoolExecutor().submit(write_beton, Made(broken, count=1357), path, RAW).exception(timeout=30)
    assert isinstance(error, UsageError)
    assert re.fullmatch(f"{path} cannot be written: .*{says}.*", str(error))  # in one line
    assert not path.exists()


def test_a_full_disk_is_an_error_with_a_remedy(tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, hard))  # to the kernel a file that cannot grow
    try:
        with pytest.raises(UsageError, match=r"a.beton cannot be written: .*make room.*INFVIT_CACHE"):
            write_beton(Made(), tmp_path / "a.beton", RAW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    write_beton(Made(), tmp_path / "a.beton", RAW)
    check_beton(tmp_path / "a.beton", 4)


def test_after_a_failure_the_file_is_written_completely(tmp_path):
    path = tmp_path / "a.beton"
    with pytest.raises(UsageError, match="image 2"):
        write_beton(Made(corrupt), path, RAW)
    write_beton(Made(), path, RAW)
    check_beton(path, 4)
    about = json.loads(path.with_suffix(".json").read_text())
    assert (about["images"], about["images_per_label"], about["fingerprint"]) == (4, {"0": 4}, "made")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.beton", "a.beton.lock", "a.json"]


@pytest.mark.slow
def test_ffcvs_own_writer_gives_the_same_images(tmp_path):
    from ffcv.fields import IntField, RGBImageField
    from ffcv.reader import Reader
    from ffcv.writer import DatasetWriter

    images = Digits().split("val")
    write_beton(images, tmp_path / "ours.beton", RAW)
    fields = {"image": RGBImageField("raw"), "label": IntField()}
    DatasetWriter(str(tmp_path / "theirs.beton"), fields, num_workers=1).from_indexed_dataset(images)

    def read(name):
        reader = Reader(str(tmp_path / name))
        content, places = (tmp_path / name).read_bytes(), reader.alloc_table
        stored = {int(place["ptr"]): content[int(place["ptr"]) :][: int(place["size"])] for place in places}
        image, label = (reader.metadata[field] for field in reader.metadata.dtype.names)
        rows = zip(image["mode"], image["width"], image["height"], label.reshape(-1), image["data_ptr"], strict=True)
        return (
            [(*map(int, about), stored[int(start)]) for *about, start in rows],
            reader.page_size,
            list(reader.handlers),
        )

    assert read("ours.beton") == read("theirs.beton")


def test_processes_that_want_one_file_write_it_once(tmp_path, capfd):
    images = Digits().split("val")
    path = beton_path(images, "digits", "val", tmp_path, RAW)
    both = [multiprocessing.Process(target=write_beton, args=(images, path, RAW)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    write_beton(images, path, RAW)
    assert [process.exitcode for process in both] == [0, 0]
    assert capfd.readouterr().out.count("writing 360 images") == 1
    check_beton(path, 360, images.labels)
    assert not list(tmp_path.rglob("*.part"))


def test_a_byte_that_changes_gives_another_file_and_a_touch_does_not(tree, tmp_path):
    def path():
        images = ImageFolder(str(tree), str(tmp_path)).split("train")
        return beton_path(images, "tree", "train", tmp_path, RAW)

    first, image = path(), next((tree / "train").rglob("*.png"))
    os.utime(image, (time.time() + 9, time.time() + 9))
    assert path() == first
    Image.new("RGB", (30, 20), (1, 2, 3)).save(image)
    assert path() != first


def test_a_file_is_named_by_content_and_settings(tmp_path):
    images = Digits().split("val")
    path = beton_path(images, "digits", "val", tmp_path, RAW)
    assert path == beton_path(Digits().split("val"), "digits", "val", tmp_path, RAW)
    assert beton_path(images, "digits", "val", tmp_path, BetonSettings(mode="jpg")) != path
    assert beton_path(Digits().split("train"), "digits", "val", tmp_path, RAW) != path


def wrong_index(path):
    from ffcv.reader import Reader
    from ffcv.types import FieldDescType, HeaderType

    start = HeaderType.itemsize + 2 * FieldDescType.itemsize
    metadata = Reader(str(path)).metadata.copy()
    metadata[metadata.dtype.names[0]]["data_ptr"][7] += 10**9
    content = bytearray(path.read_bytes())
    content[start : start + metadata.nbytes] = metadata.tobytes()
    return bytes(content)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda _: b"", "not a .beton"),
        (lambda _: b"GIF89a" * 1000, "not a .beton"),
        (lambda path: path.read_bytes()[: path.stat().st_size // 2], ""),
        (lambda path: path.read_bytes()[:-24], ""),
        (lambda path: path.read_bytes()[:40], ""),
        (wrong_index, "damaged"),
    ],
    ids=["empty", "foreign", "half", "table", "header", "index"],
)
def test_a_damaged_file_is_refused(tmp_path, damage, says):
    images = Digits().split("val")
    path = tmp_path / "val.beton"
    write_beton(images, path, RAW)
    check_beton(path, 360, images.labels)
    with pytest.raises(UsageError, match=r"holds 360 samples .*expected 361"):
        check_beton(path, 361)
    with pytest.raises(UsageError, match="other labels"):
        check_beton(path, 360, images.labels[::-1])
    path.write_bytes(damage(path))
    with pytest.raises(UsageError, match=rf"{says}.*rm '.*val.beton'"):
        check_beton(path, 360)
