"""Trees of images: what is found, how a known tree is recognised, and the errors for a tree that cannot be used."""

import os
import shutil

import pytest
import torch

from data.datasets.imagefolder import ImageFolder
from infvit.errors import UsageError
from tests.data.digits_run import Recorder, datamodule, trainer


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
    with pytest.raises(UsageError, match=r"1 of the images .*apple/1.JPEG \(OSError: .*skip_bad"):
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


@pytest.mark.parametrize("classes", [["cedar", "apple", "Birch"], ["ash", "Birch", "apple", "n00000001", "cedar"]])
def test_labels_are_those_of_a_model_by_the_names_of_its_classes(tree, tmp_path, classes, capsys):
    data = datamodule(tmp_path, source=folder(tree, tmp_path), batch_size=4)
    data.match_classes(classes, "last.ckpt")
    assert f"3 classes, matched by name with the {len(classes)} of last.ckpt" in capsys.readouterr().out
    assert data.classes == classes
    names = [path.split("/")[1] for path in data.paths]
    recorder = Recorder()
    trainer().test(recorder, datamodule=data, verbose=False)
    for labels in (recorder.tested, [labels for _, labels, _ in data.exact(None, 5)]):
        assert [classes[label] for label in torch.cat(labels)] == names


@pytest.mark.parametrize("classes", [["Birch", "apple"], ["Birch", "apple", "oak"], ["0", "1", "2"]])
def test_a_model_that_does_not_know_a_class_is_refused(tree, tmp_path, classes):
    data = datamodule(tmp_path, source=folder(tree, tmp_path), batch_size=4)
    with pytest.raises(UsageError, match=r"last.ckpt knows .* classes .*not these of data=digits: .*cedar; give data"):
        data.match_classes(classes, "last.ckpt")


def test_a_class_with_too_few_images_to_hold_some_out_is_one_line(tree, tmp_path):
    for path in list((tree / "train" / "cedar").iterdir())[1:]:
        path.unlink()
    with pytest.raises(UsageError, match=r"0.2 of 13 images cannot be drawn class by class"):
        datamodule(tmp_path, source=folder(tree, tmp_path), validation_fraction=0.2, batch_size=4)


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
