"""FFCV's files: what cannot be written or read is an error that names the file, never an endless wait."""

import json
import multiprocessing
import os
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image

from data.beton import BetonSettings, beton_path, check_beton, write_beton
from data.digits import Digits
from data.imagefolder import ImageFolder
from infvit.errors import UsageError

pytest.importorskip("ffcv")
RAW = BetonSettings()


class Made:
    """`count` tiny images, made when asked for; `broken` says what happens at image 2."""

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


def full():
    raise OSError(28, "No space left on device")


def killed():
    os.kill(os.getpid(), signal.SIGKILL)


def in_seconds(limit, function, *arguments):
    """Calls it in a thread, so that a hang fails the test; gives what it raised."""
    raised = []

    def call():
        try:
            function(*arguments)
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(limit)
    assert not thread.is_alive(), f"still writing after {limit} s"
    return raised[0] if raised else None


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (large, ["8 MiB", "max_resolution", "image 2"]),
        (corrupt, ["no picture in here", "image 2"]),
        (full, ["No space left", "INFVIT_CACHE"]),
        (killed, ["killed by signal 9"]),
    ],
)
def test_a_writer_that_fails_says_why_and_leaves_nothing(tmp_path, broken, says):
    path, shared = tmp_path / "a.beton", set(os.listdir("/dev/shm"))
    error = in_seconds(30, write_beton, Made(broken, count=1357), path, RAW)
    assert isinstance(error, UsageError)
    for words in (str(tmp_path), *says):
        assert words in str(error)
    assert not path.exists()
    mine = [name for name in set(os.listdir("/dev/shm")) - shared if os.stat(f"/dev/shm/{name}").st_size == 1357 * 24]
    assert not mine, "the writer's shared memory stays behind"
    assert "\n" not in str(error)


def test_after_a_failure_the_file_is_written_as_if_nothing_had_been(tmp_path):
    path = tmp_path / "a.beton"
    in_seconds(30, write_beton, Made(corrupt), path, RAW)
    write_beton(Made(), path, RAW)
    check_beton(path, 4)
    about = json.loads(path.with_suffix(".json").read_text())
    assert (about["images"], about["images_per_label"], about["fingerprint"]) == (4, {"0": 4}, "made")


def test_processes_that_want_one_file_write_it_once(tmp_path, capfd):
    images = Digits().split("val")
    path = beton_path(images, "digits", "val", tmp_path, RAW)
    both = [multiprocessing.Process(target=write_beton, args=(images, path, RAW)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    assert capfd.readouterr().out.count("writing 360 images") == 1
    check_beton(path, 360, images.labels)


def test_a_byte_that_changes_gives_another_file_and_a_touch_does_not(tree, tmp_path):
    def path():
        images = ImageFolder(str(tree), str(tmp_path)).split("train")
        return beton_path(images, "tree", "train", tmp_path, RAW)

    first, image = path(), next((tree / "train").rglob("*.png"))
    os.utime(image, (time.time() + 9, time.time() + 9))
    assert path() == first
    Image.new("RGB", (30, 20), (1, 2, 3)).save(image)
    assert path() != first


def test_a_file_whose_index_or_labels_are_damaged_is_refused(tmp_path):
    images = Digits().split("val")
    path = beton_path(images, "digits", "val", tmp_path, RAW)
    write_beton(images, path, RAW)
    check_beton(path, 360, images.labels)
    with pytest.raises(UsageError, match="other labels"):
        check_beton(path, 360, images.labels[::-1])

    from ffcv.reader import Reader
    from ffcv.types import FieldDescType, HeaderType

    start = HeaderType.itemsize + 2 * FieldDescType.itemsize
    metadata = Reader(str(path)).metadata.copy()
    metadata[metadata.dtype.names[0]]["data_ptr"][7] += 10**9
    content = bytearray(path.read_bytes())
    content[start : start + metadata.nbytes] = metadata.tobytes()
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"index does not match .*rm '"):
        check_beton(path, 360, images.labels)
