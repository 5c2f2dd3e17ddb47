"""ImageNet-V2 in both its layouts, the labels that its folders mean, and its way into the table of a run."""

import importlib.util
import json
import shutil

import pytest
from timm.data import ImageNetInfo

from data.datasets.imagefolder import ImageFolder
from data.datasets.imagenet_v2 import ImageNetV2, synsets
from data.prepare.__main__ import main as prepare
from infvit.compare.__main__ import main as compare
from infvit.errors import UsageError
from tests.data.made_imagenet import ONE_STEP, V2, label_of


@pytest.mark.slow
def test_numbers_and_synsets_give_every_image_its_label(v2, tmp_path):
    sets = [ImageNetV2(str(root), str(tmp_path)).split("val") for root in (v2["numbers"], v2["synsets"])]
    for images in sets:
        assert images.labels.tolist() == list(range(1000))
        for label in (0, 2, 10, 99, 100, 101, 999):  # sorted as text, 10 follows 1 and 100 follows 10
            image, given = images[label]
            assert label_of(image) == given == label
    assert sets[0].fingerprint() == sets[1].fingerprint()
    assert len(ImageNetV2(str(v2["numbers"]), str(tmp_path)).split("train")) == 0


def test_synsets_are_in_the_order_of_imagenets_labels_which_is_that_of_folders_sorted_by_name():
    names = synsets()
    assert names == sorted(names)
    assert len(set(names)) == 1000
    info = ImageNetInfo("imagenet-1k")
    described = [info.label_name_to_description(names[i]).split(",")[0] for i in (0, 1, 207, 281, 388, 999)]
    assert described == ["tench", "goldfish", "golden retriever", "tabby", "giant panda", "toilet tissue"]


def test_imagenet_has_no_other_classes_than_its_own(v2, tmp_path):
    tree = tmp_path / "tree"
    for split in ("train", "val"):
        for label, name in enumerate(synsets()[:3]):
            shutil.copytree(v2["numbers"] / V2 / str(label), tree / split / name)
    options = {"cache_dir": str(tmp_path), "name": "imagenet", "known_classes": synsets()}
    assert ImageFolder(str(tree), **options).classes == synsets()[:3]
    for split in ("train", "val"):
        (tree / split / synsets()[1]).rename(tree / split / "goldfish")
    with pytest.raises(UsageError, match=r"not classes of imagenet: goldfish; expected .*n01440764.*data=imagefolder"):
        ImageFolder(str(tree), **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (shutil.rmtree, "does not exist; unpack imagenetv2-matched-frequency.tar.gz .*data.root=DIR"),
        (lambda tree: shutil.rmtree(tree / "7"), "has 999 class folders, expected all of 0 to 999.* them: 7: unpack"),
        (lambda tree: (tree / "7").rename(tree / "1000"), "1000 class folders, expected .*not one of them: 1000, 7"),
        (lambda tree: (tree / "7").rename(tree / synsets()[7]), "not one of them: 7, n01514668"),
        (lambda tree: (tree / "7" / "0.jpeg").unlink(), "7 holds no images"),
        (lambda tree: (tree / "7" / "0.jpeg").write_bytes(b"\xff\xd8"), r"cannot be decoded.*7/0.jpeg.*skip_bad"),
    ],
)
def test_a_folder_that_cannot_be_used(v2, tmp_path, change, message):
    root = tmp_path / "v2"
    (root / V2).mkdir(parents=True)
    for label in range(1000):
        folder = root / V2 / str(label)
        folder.mkdir()
        (folder / "0.jpeg").hardlink_to(v2["numbers"] / V2 / str(label) / "0.jpeg")
    (root / V2 / "7" / "0.jpeg").unlink()
    shutil.copy(v2["numbers"] / V2 / "7" / "0.jpeg", root / V2 / "7")
    change(root / V2)
    with pytest.raises(UsageError, match=message):
        ImageNetV2(str(root), str(tmp_path / "cache"))
    with pytest.raises(UsageError, match=r"data.variant=v3 is not a variant .* expected one of matched-frequency,"):
        ImageNetV2(str(root), str(tmp_path / "cache"), variant="v3")


@pytest.mark.slow
def test_a_run_evaluated_on_v2_has_a_second_column_and_its_result_stays_as_it_was(cli, v2, tmp_path):
    tree = tmp_path / "tree"
    for split in ("train", "val"):
        (tree / split).mkdir(parents=True)
        for name in synsets():
            (tree / split / name).symlink_to(v2["synsets"] / V2 / name)
    root = tree
    if importlib.util.find_spec("ffcv"):  # then from the prepared folder, without the tree
        root = tmp_path / "prepared"
        assert prepare(["imagenet", "--source", str(tree), "--out", str(root), "--allow-partial"]) == 0
        shutil.rmtree(tree)
    trained = cli("train", "data=imagenet", f"data.root={root}", *ONE_STEP).ok()
    (run,) = trained.runs()
    result = (run / "result.json").read_bytes()
    ckpt = f"ckpt={run / 'checkpoints' / 'last.ckpt'}"

    cli("eval", ckpt).ok()
    assert not (run / "evaluations").exists()  # its result has that number
    measured = cli("eval", ckpt, "data=imagenet_v2", f"data.root={v2['numbers']}", "data.module.workers=0").ok()
    assert "vit on imagenet_v2_matched-frequency, 1,000 images" in measured.out
    assert "No ReaL labels on imagenet_v2_matched-frequency" in measured.out
    (path,) = (run / "evaluations").glob("imagenet_v2_matched-frequency-*.json")
    stored = json.loads(path.read_text())
    # Here both test sets are the same images, so that the labels agree if and only if the accuracies do.
    assert stored["loss"] == pytest.approx(json.loads(result)["metrics"]["test/loss"], rel=1e-4)
    assert stored["top1_low"] <= stored["top1"] <= stored["top1_high"]
    assert (run / "result.json").read_bytes() == result
    assert compare([str(run), "--out", str(tmp_path / "table")]) == 0
    header, _, row = (line for line in (tmp_path / "table/comparison.md").read_text().splitlines() if "|" in line)
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells["V2 top-1 %"] == f"{100 * stored['top1']:.2f} ± –"

    refused = cli("train", "data=imagenet_v2", f"data.root={v2['numbers']}", *ONE_STEP)
    assert "data=imagenet_v2_matched-frequency has no images to train on" in refused.error()
    missing = cli("eval", ckpt, "data=imagenet_v2", f"data.root={v2['numbers']}", "data.variant=top-images")
    assert "imagenetv2-top-images-format-val does not exist" in missing.error()
