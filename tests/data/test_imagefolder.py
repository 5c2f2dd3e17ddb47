"""Trees of images: what is found, how a known tree is recognised, and the errors for a tree that cannot be used."""

import os
import shutil

import pytest

from data.datasets.imagefolder import ImageFolder
from infvit.errors import UsageError


def folder(tree, tmp_path, **options):
    return ImageFolder(str(tree), cache_dir=str(tmp_path / "cache"), **options)


def test_finds_images_of_every_kind_and_makes_them_rgb(tree, tmp_path):
    source = folder(tree, tmp_path)
    assert source.classes == ["Birch", "apple", "cedar"]
    train = source.split("train")
    assert train.labels.tolist() == [0] * 6 + [1] * 6 + [2] * 6
    assert all(train[i][0].mode == "RGB" for i in range(len(train)))
    assert [train[i][1] for i in range(len(train))] == train.labels.tolist()


def test_fingerprint_is_of_the_content_alone(tree, tmp_path):
    first = folder(tree, tmp_path).split("train").fingerprint()
    for path in tree.rglob("*.png"):
        os.utime(path, (1, 1))
    assert folder(tree, tmp_path).split("train").fingerprint() == first
    moved = shutil.copytree(tree, tmp_path / "moved")
    assert folder(moved, tmp_path).split("train").fingerprint() == first
    shutil.copy(tree / "train" / "apple" / "0.png", tree / "train" / "apple" / "2.png")
    assert folder(tree, tmp_path).split("train").fingerprint() != first


def test_a_known_tree_is_not_decoded_again(tree, tmp_path, monkeypatch):
    folder(tree, tmp_path)
    monkeypatch.setattr("data.datasets.image_files._digest", lambda *_: pytest.fail("read again"))
    folder(tree, tmp_path)


def test_a_corrupt_image_is_named_and_left_out_only_on_request(tree, tmp_path):
    bad = tree / "train" / "apple" / "1.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"1 of the images .*apple/1.JPEG.*skip_bad"):
        folder(tree, tmp_path)
    with pytest.warns(UserWarning, match=r"left out 1 images .*apple/1.JPEG"):
        source = folder(tree, tmp_path, skip_bad=True)
    assert len(source.split("train")) == 17
    assert source.split("train").labels.tolist() == [0] * 6 + [1] * 5 + [2] * 6


def test_val_alone_is_enough_to_evaluate(tree, tmp_path):
    whole = folder(tree, tmp_path)
    shutil.rmtree(tree / "train")
    alone = folder(tree, tmp_path, num_classes=3)
    assert alone.classes == whole.classes
    assert len(alone.split("train")) == 0
    assert alone.split("val").fingerprint() == whole.split("val").fingerprint()


def test_a_tree_that_cannot_be_used(tree, tmp_path):
    with pytest.raises(UsageError, match=r"nowhere/val does not exist; prepare it so"):
        folder(tmp_path / "nowhere", tmp_path, how_to_prepare="prepare it so")
    with pytest.raises(UsageError, match=r"has 3 class folders .* expects 1000"):
        folder(tree, tmp_path, num_classes=1000)
    (tree / "train" / "apple" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(UsageError, match=r"apple/gone.png cannot be read"):
        folder(tree, tmp_path)
    shutil.rmtree(tree / "val" / "cedar")
    with pytest.raises(UsageError, match="only in one of them: cedar"):
        folder(tree, tmp_path)
    (tree / "val" / "cedar").mkdir()
    with pytest.raises(UsageError, match="cedar holds no images"):
        folder(tree, tmp_path)
    for split in ("train", "val"):
        shutil.rmtree(tree / split)
        (tree / split).mkdir()
    with pytest.raises(UsageError, match="has no class folders"):
        folder(tree, tmp_path)
