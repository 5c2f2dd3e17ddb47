"""`python -m data.prepare` writes the data set, however often it was stopped, and training needs nothing else."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets.folder import pil_loader

from data.beton.loader import FFCVReader
from data.datasets import prepared as prepared_set
from data.datasets.imagefolder import ImageFolder
from data.datasets.imagenet_v2 import FOLDERS, synsets
from data.datasets.prepared import Prepared, PreparedImages, imagefolder
from data.order import EpochOrder
from data.prepare.__main__ import main
from data.torch_loader import TorchReader
from data.view import View
from infvit.errors import UsageError
from tests.data import made_imagenet as made
from tests.data.digits_run import loader

pytest.importorskip("ffcv")
NAMES = synsets()


def prepare(source, out, *more, data="imagenet"):
    return main([data, "--source", str(source), "--out", str(out), "--allow-partial", *more])


@pytest.fixture(scope="module")
def prepared(imagenet_tree, tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    assert prepare(imagenet_tree, out) == 0
    return out


def some_classes(tree, root, labels):
    """A tree of some classes, of the same files."""
    for split in ("train", "val"):
        (root / split).mkdir(parents=True)
        for label in labels:
            (root / split / NAMES[label]).symlink_to(tree / split / NAMES[label])
    return root


@pytest.fixture
def few(imagenet_tree, tmp_path):
    return some_classes(imagenet_tree, tmp_path / "few", [0, 5, made.CMYK, made.ROTATED, made.GREY, made.PNG])


def bytes_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
def test_a_prepared_folder_is_the_tree(prepared, imagenet_tree, tmp_path):
    tree, ready = ImageFolder(str(imagenet_tree), str(tmp_path)), Prepared(str(prepared), "imagenet")
    assert ready.classes == NAMES
    for split in ("train", "val"):
        assert ready.split(split).fingerprint() == tree.split(split).fingerprint()
        assert ready.split(split).labels.tolist() == tree.split(split).labels.tolist()
    for index in range(0, 1000, 9):  # the exact pipeline has the very pixels
        image, label = ready.split("val")[index]
        assert label == made.label_of(image)
        assert image.tobytes() == tree.split("val")[index][0].tobytes()
    names = {path.name for path in prepared.iterdir()}
    assert names == {f"imagenet-{end}" for end in ("train.beton", "train.json", "val.beton", "val.json", "val.zip")}


@pytest.mark.slow
def test_ffcv_reads_it_with_the_right_labels(prepared, tmp_path):
    from data.beton.loader import FFCVReader

    for split, count in (("train", 2000), ("val", 1000)):
        images, order = imagefolder(str(prepared), "imagenet").split(split), EpochOrder(count, 256, shuffle=False)
        batches = loader(FFCVReader(), tmp_path, images, order=order, batch_size=250)
        seen = [(pixels[:, :, 1, 1] // 25, labels) for pixels, labels in batches]
        digits, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
        assert labels.tolist() == images.labels.tolist()
        assert ((digits * torch.tensor([100, 10, 1])).sum(1) == labels).float().mean() > 0.99
    assert not list(tmp_path.iterdir()), "nothing is written again"


@pytest.mark.slow
def test_killed_and_run_again_it_gives_the_same_bytes_and_writes_no_shard_twice(imagenet_tree, tmp_path, capfd):
    source = tmp_path / "source"
    source.mkdir()
    archive, whole, out = source / "ILSVRC2012_img_val.tar", tmp_path / "whole", tmp_path / "out"
    made.val_tar(imagenet_tree, archive)
    made.devkit(imagenet_tree, source / "ILSVRC2012_devkit_t12.tar.gz")
    assert prepare(source, whole, "--shard", "64") == 0
    command = [sys.executable, "-m", "data.prepare", "imagenet", "--source", str(source), "--out", str(out)]
    killed = subprocess.Popen([*command, "--allow-partial", "--shard", "64"], stdout=subprocess.DEVNULL)
    third = out / "imagenet-val.beton.shards" / "000002.npy"
    while killed.poll() is None and not third.exists():
        time.sleep(0.001)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert not list(out.glob("*.beton"))
    assert third.exists()

    # The images of whole shards are now removed from the source: reading them again would stop the job.
    rows = np.concatenate([np.load(path) for path in sorted(third.parent.glob("*.npy"))])
    assert 192 <= len(rows) < 1000, "it came too far to be resumed"
    stat, content = archive.stat(), bytearray(archive.read_bytes())
    for index in range(len(rows)):
        place = _member(content, index)
        content[place : place + 100] = bytes(100)
    archive.write_bytes(content)
    os.utime(archive, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    capfd.readouterr()
    assert prepare(source, out, "--shard", "64") == 0
    assert (out / "imagenet-val.beton").read_bytes() == (whole / "imagenet-val.beton").read_bytes()
    assert (out / "imagenet-val.json").read_bytes() == (whole / "imagenet-val.json").read_bytes()
    assert len(list(out.iterdir())) == 3


@pytest.mark.slow
def test_a_job_with_other_settings_starts_again_and_a_finished_file_is_never_overwritten(few, tmp_path, capfd):
    assert prepare(few, tmp_path / "raw", "--mode", "raw") == 0
    out = tmp_path / "out"
    (out / "imagenet-val.beton.shards").mkdir(parents=True)
    (out / "imagenet-val.beton.shards" / "identity").write_text("other")
    (out / "imagenet-val.beton.part").write_bytes(b"of another job" * 10**6)
    assert prepare(few, out, "--mode", "raw") == 0
    before = bytes_of(out)
    assert before == bytes_of(tmp_path / "raw")
    capfd.readouterr()
    assert prepare(few, out) == 2
    assert "holds its images with other settings, {'mode': 'raw'" in capfd.readouterr().err
    assert prepare(few, out, "--mode", "raw") == 0
    assert capfd.readouterr().out.count("exists already and is complete") == 2
    assert bytes_of(out) == before


def test_odd_images_are_stored_as_the_exact_pipeline_sees_them(few, tmp_path, capfd):
    assert prepare(few, tmp_path / "out", "--mode", "raw", "--verify") == 0
    assert capfd.readouterr().out.count("they differ by at most 0.0 of 255") == 2
    written, tree = Prepared(str(tmp_path / "out"), "imagenet"), ImageFolder(str(few), str(tmp_path / "cache"))
    for split in ("train", "val"):
        images = written.split(split)
        assert [NAMES[label] for label in images.labels] == [tree.classes[label] for label in tree.split(split).labels]
        for index in range(len(images)):
            pixels, exact = images[index][0], pil_loader(tree.split(split).title(index))  # torchvision's, as it is
            assert (pixels.size, pixels.tobytes()) == (exact.size, exact.tobytes())


@pytest.mark.slow
def test_an_image_that_cannot_be_read_is_named_and_left_out_only_on_request(few, tmp_path, capfd):
    bad = few / "train" / NAMES[0]
    whole = bad.readlink() / f"{NAMES[0]}_18.JPEG"
    bad.unlink()
    bad.mkdir()
    (bad / whole.name).write_bytes(whole.read_bytes()[:-200])
    (bad / f"{NAMES[0]}_7.JPEG").write_bytes(whole.read_bytes())
    assert prepare(few, tmp_path / "out") == 2
    printed = capfd.readouterr().err
    assert f"{NAMES[0]}_18.JPEG" in printed
    assert "--skip-bad" in printed
    assert printed.count("\n") == 1
    assert not list((tmp_path / "out").glob("*.beton"))
    assert prepare(few, tmp_path / "out", "--skip-bad", "--verify") == 0
    assert f"{NAMES[0]}_18.JPEG" in capfd.readouterr().out.split("left out 1")[1]
    about = json.loads((tmp_path / "out" / "imagenet-train.json").read_text())
    assert list(about["left_out"].values()) == [str(bad / whole.name)]
    train = Prepared(str(tmp_path / "out"), "imagenet").split("train")
    assert len(train) == 11
    with pytest.warns(UserWarning, match="left out 1"):
        tree = ImageFolder(str(few), str(tmp_path / "cache"), skip_bad=True)
    assert [NAMES[label] for label in train.labels] == [tree.classes[label] for label in tree.split("train").labels]


def test_missing_images_are_listed_and_nothing_is_written(few, tmp_path, capfd):
    options = ["--source", str(few), "--out", str(tmp_path / "out")]
    assert main(["imagenet", *options]) == 2
    printed = capfd.readouterr().err
    assert "imagenet train has 12 of 1,281,167 images, none of n01443537, n01484850, n01491361 and" in printed
    assert "imagenet val has 6 of 50,000 images" in printed
    assert "--allow-partial" in printed
    (few / "val").rename(few / "validation")
    assert main(["imagenet", *options]) == 2
    assert "holds no validation images: looked for val/<synset>/*.JPEG" in capfd.readouterr().err
    assert main(["imagenet_v2", *options]) == 2
    assert "holds no ImageNet-V2: expected one of the folders imagenetv2-matched-freq" in capfd.readouterr().err
    assert not list((tmp_path / "out").rglob("*.beton*"))


def test_without_room_nothing_is_written(few, tmp_path, capfd, monkeypatch):
    usage = type("Usage", (), {"free": 5000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    assert prepare(few, tmp_path / "out", "--mode", "raw") == 2
    printed = capfd.readouterr().err
    assert "B are needed, 5.00kB are free: make room" in printed
    assert "--max-side or --mode jpg" in printed
    assert not list((tmp_path / "out").glob("imagenet-*"))


def test_verify_finds_a_file_that_is_not_its_source(few, tmp_path, capfd):
    out = tmp_path / "out"
    assert prepare(few, out, "--mode", "raw") == 0
    path = out / "imagenet-train.beton"
    content = bytearray(path.read_bytes())
    train = Prepared(str(out), "imagenet").split("train")
    place = content.index(train[3][0].tobytes())
    content[place + 7] ^= 64
    path.write_bytes(content)
    capfd.readouterr()
    assert prepare(few, out, "--mode", "raw", "--verify") == 2
    assert f"train.beton differs from {few}/train/{NAMES[5]}/{NAMES[5]}_18.JPEG by 64.0 of" in capfd.readouterr().err


@pytest.mark.slow
def test_images_of_one_name_in_one_class_are_all_kept(tmp_path, capfd):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    labels = [2, 0, 1, 0, 2, 1]
    images = [{"bytes": made.encoded(i, 0, odd=False), "path": "image.jpg"} for i in range(len(labels))]
    (tmp_path / "data").mkdir()
    path = tmp_path / "data" / "validation-00000-of-00001.parquet"
    parquet.write_table(pa.table({"image": images, "label": labels}), path)
    out = tmp_path / "out"
    assert prepare(tmp_path, out, "--mode", "raw", "--verify") == 0
    val = Prepared(str(out), "imagenet").split("val")
    assert val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    exact, ffcv = (
        [made.label_of(val[i][0]) for i in range(6)],
        [made.label_of(PreparedImages(val.beton)[i][0]) for i in range(6)],
    )
    assert exact == ffcv == [1, 3, 2, 5, 0, 4]
    with zipfile.ZipFile(out / "imagenet-val.zip", "w") as kept:
        for index in range(6):
            kept.writestr(f"{NAMES[index // 2]}/image{index}.jpg", images[1]["bytes"])
    prepared_set._opened.cache_clear()
    assert prepare(tmp_path, out, "--mode", "raw", "--verify") == 2
    assert "imagenet-val.beton differs from" in capfd.readouterr().err


@pytest.mark.slow
def test_odd_names_and_shapes_of_images(tree, tmp_path, capfd):
    sizes = {b"\xff.png": (9, 9), b"a\nb.png": (9, 9), b"wide.png": (900, 1)}  # 500 × 0 if scaled without care
    for split in ("train", "val"):
        for name, size in sizes.items():
            Image.new("RGB", size, (40, 90, 200)).save(tree / split / "apple" / os.fsdecode(name))
    (tree / "val" / "cedar" / os.fsdecode(b"\xfe.png")).write_bytes(b"no image")
    out = tmp_path / "out"
    assert prepare(tree, out, "--mode", "raw", "--verify", "--skip-bad", data="imagefolder") == 0
    assert "left out 1 that cannot be decoded" in (printed := capfd.readouterr().out)
    assert "cedar/\\udcfe.png" in printed
    source = Prepared(str(out), "imagefolder")
    assert [len(source.split(split)) for split in ("train", "val")] == [21, 15]
    val, view = source.split("val"), View(8)
    for reader in (FFCVReader(), TorchReader()):
        batches = list(loader(reader, tmp_path, val, view, EpochOrder(15, 15, shuffle=False)))
        seen = torch.cat([images for images, _ in batches])
        blue = (seen == torch.tensor([40, 90, 200]).view(3, 1, 1)).flatten(1).all(1)
        assert blue.tolist() == ["apple" in path and path[6] not in "0123" for path in val.paths]


@pytest.mark.slow
def test_a_variant_of_imagenet_v2_and_any_tree(tree, tmp_path, capfd):
    out = tmp_path / "out"
    root = tmp_path / FOLDERS["threshold-0.7"]
    for label in range(1000):
        (root / str(label)).mkdir(parents=True)
        (root / str(label) / "a.jpeg").symlink_to(tmp_path / "a.jpeg")
    Image.new("RGB", (9, 9)).save(tmp_path / "a.jpeg")
    assert prepare(tmp_path, out, data="imagenet_v2") == 0
    assert "imagenet_v2_threshold-0.7 val has 1,000 of 10,000 images" in capfd.readouterr().out
    ready = Prepared(str(out), "imagenet_v2_threshold-0.7")
    assert ready.split("val").labels.tolist() == list(range(1000))
    assert len(ready.split("train")) == 0
    assert prepare(tree, out, data="imagefolder") == 0
    assert Prepared(str(out), "imagefolder").classes == ["Birch", "apple", "cedar"]
    with zipfile.ZipFile(out / "imagefolder-val.zip") as kept:
        assert kept.read("cedar/0.png") == (tree / "val" / "cedar" / "0.png").read_bytes()
    for name in ("imagefolder-train.json", "imagefolder-val.zip", "imagefolder-val.beton"):
        (out / name).unlink()
        with pytest.raises(UsageError, match=rf"imagefolder.*{name.removeprefix('imagefolder')}.*: (copy|finish)"):
            Prepared(str(out), "imagefolder")


def _member(content, number):
    """The place of a member's bytes in the tar, whose members are in the order of their numbers."""
    return content.index(b"ILSVRC2012_val_%08d.JPEG" % (number + 1)) + 512
