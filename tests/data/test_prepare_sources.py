"""Every form in which ImageNet is published holds the same images with the same labels, in the same order."""

import gzip
import io
import json
import shutil
import tarfile

import numpy as np
import pytest
from timm.data import ImageNetInfo

from data.datasets.imagenet_v2 import synsets
from data.prepare import recognise
from data.prepare.devkit import DEVKIT, validation_synsets
from infvit.errors import UsageError
from tests.data import made_imagenet as made

NAMES = synsets()
INFO = ImageNetInfo("imagenet-1k")


@pytest.fixture(scope="module")
def indices(tmp_path_factory):
    return tmp_path_factory.mktemp("indices")


@pytest.fixture(scope="module")
def archives(imagenet_tree, tmp_path_factory):
    """The original tars and the devkit."""
    folder = tmp_path_factory.mktemp("archives")
    made.train_tar(imagenet_tree, folder / "ILSVRC2012_img_train.tar")
    made.val_tar(imagenet_tree, folder / "ILSVRC2012_img_val.tar")
    made.devkit(imagenet_tree, folder / DEVKIT)
    return folder


def flat(archives, folder):
    """The validation images unpacked, and the devkit."""
    (folder / "val").mkdir(parents=True)
    with tarfile.open(archives / "ILSVRC2012_img_val.tar") as tar:
        tar.extractall(folder / "val", filter="data")
    shutil.copy(archives / DEVKIT, folder)
    return folder


def found(source, indices):
    return recognise.imagenet(source, NAMES, indices)


def assert_same(images, tree):
    assert images.listing() == tree.listing()
    order = [index for piece in images.pieces() for index in piece]
    assert sorted(order) == list(range(len(tree)))
    assert all(images.read(index) == tree.read(index) for index in order)


@pytest.mark.slow
def test_folders_have_the_label_of_their_synset(imagenet_tree, indices):
    splits = found(imagenet_tree, indices)
    assert {split: len(images) for split, images in splits.items()} == {"train": 2000, "val": 1000}
    assert splits["train"].kind == "train/ with synset folders"
    for images in splits.values():
        for index in range(0, len(images), 7):
            image, label = images[index]
            assert made.label_of(image) == label == images.labels[index]
            assert NAMES[label] in images.title(index)


@pytest.mark.slow
def test_tars_are_read_in_place(imagenet_tree, archives, indices, monkeypatch):
    tree, before = found(imagenet_tree, indices), sorted(archives.iterdir())
    tars = found(archives, indices)
    assert tars["train"].kind == "ILSVRC2012_img_train.tar (1,000 tars)"
    for split in ("train", "val"):
        assert_same(tars[split], tree[split])
        starts = tars[split].places[[i for piece in tars[split].pieces() for i in piece], 1]
        assert (np.diff(starts) > 0).all(), "an archive is read front to back"
    assert f"n01440764.tar/{tars['train'].names[0]}" in tars["train"].title(0)
    assert sorted(archives.iterdir()) == before
    assert all(path.suffix in {".json", ".lock"} for path in indices.iterdir())
    monkeypatch.setattr("tarfile.open", lambda *_, **__: pytest.fail("the index was built twice"))
    assert len(found_tar := recognise._train_tar(archives / "ILSVRC2012_img_train.tar", NAMES, indices)) == 2000
    assert found_tar.read(7) == tree["train"].read(7)


@pytest.mark.slow
def test_the_devkits_numbers_are_not_the_alphabets(imagenet_tree, archives, indices, tmp_path):
    splits = found(flat(archives, tmp_path / "flat"), indices)
    assert set(splits) == {"val"}
    assert splits["val"].kind == "val/ flat, labels of the devkit"
    assert_same(splits["val"], found(imagenet_tree, indices)["val"])
    with tarfile.open(archives / DEVKIT) as tar:
        truth = tar.extractfile("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").read()
    numbers = [int(line) for line in truth.split()]
    by_alphabet = [NAMES[number - 1] for number in numbers]
    wrong = sum(a != b for a, b in zip(by_alphabet, validation_synsets(archives / DEVKIT), strict=True))
    assert wrong > 900


@pytest.mark.slow
def test_parquet_files(imagenet_tree, indices, tmp_path):
    pytest.importorskip("pyarrow")
    made.parquet(imagenet_tree, tmp_path / "data")
    splits, tree = found(tmp_path, indices), found(imagenet_tree, indices)
    for split in ("train", "val"):
        assert_same(splits[split], tree[split])
        rows = [splits[split].places[piece] for piece in splits[split].pieces()]
        assert all(len(np.unique(places[:, :2], axis=0)) == 1 for places in rows), "a group of rows is read once"


def test_parquet_with_other_labels_is_refused(tmp_path, indices):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    images = [{"bytes": made.encoded(1, 0, odd=False), "path": f"{NAMES[1]}_7_{NAMES[1]}.JPEG"}]
    wrong = {"image": images, "label": [2]}, "gives n01443537_7_n01443537.JPEG .* label 2, which is n01484850: expected"
    none = {"image": images, "label": [1000]}, "label 1000, which is no class"
    other = {"picture": images}, r"columns .*picture.*expected image.bytes"
    for number, (table, says) in enumerate((wrong, none, other)):
        folder = tmp_path / str(number) / "data"
        folder.mkdir(parents=True)
        parquet.write_table(pa.table(table), folder / "train-00000-of-00001.parquet")
        with pytest.raises(UsageError, match=says):
            found(folder.parent, indices)


DESCRIBED = [INFO.label_name_to_description(name) for name in NAMES]
NO_CRANES = [name for name in NAMES if INFO.label_name_to_description(name) != "crane"]


@pytest.mark.parametrize(
    ("names", "values", "expected"),
    [
        (None, [3, 1], [3, 1]),
        (None, NAMES[5:7], [5, 6]),
        ([str(label) for label in range(1000)], [3, 1], [3, 1]),
        (NAMES[::-1], [0, 1], [999, 998]),
        (NO_CRANES[::-1], [0, 997], [999, 0]),
        ([INFO.label_name_to_description(name) for name in NO_CRANES[::-1]], [0, 997], [999, 0]),
        ([*DESCRIBED[:517], "crane2", *DESCRIBED[518:]], [0, 134, 517, 999], [0, 134, 517, 999]),
        (DESCRIBED[::-1], [0], "not ImageNet-1K's, or not one of them alone: crane, crane; expected synsets such as"),
        (["cat", "dog"], [0], "not ImageNet-1K's, or not one of them alone: cat, dog; expected synsets such as"),
        (NAMES, [None], "an image .* the label None, which is no class"),
    ],
    ids=["none", "synset", "numbers", "reversed", "uncraned", "described", "crane2", "cranes", "other", "null"],
)
def test_parquet_labels_are_read_from_the_files_own_names(tmp_path, indices, names, values, expected):
    pa = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = pa.array([{"bytes": b"%d" % i, "path": None} for i in range(len(values))], struct)
    table = pa.table({"image": rows, "label": values})
    if names is not None:
        features = {"label": {"names": names, "_type": "ClassLabel"}, "image": {"_type": "Image"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    (tmp_path / "data").mkdir()
    parquet.write_table(table, tmp_path / "data" / "train-00000-of-00001.parquet")
    if isinstance(expected, str):
        with pytest.raises(UsageError, match=expected):
            found(tmp_path, indices)
    else:
        images = found(tmp_path, indices)["train"]
        by_row = {int(images.read(index)): int(images.labels[index]) for index in range(len(images))}
        assert [by_row[row] for row in range(len(values))] == expected


@pytest.mark.slow
def test_imagenet_v2_in_both_its_layouts(v2):
    sets = {kind: recognise.imagenet_v2(root, "matched-frequency", NAMES) for kind, root in v2.items()}
    for images in sets.values():
        assert_same(images, sets["numbers"])
        assert images.labels.tolist() == list(range(1000))
        assert all(made.label_of(images[label][0]) == label for label in (0, 2, 10, 99, 100, 101, 999))
    assert recognise.imagenet_v2(v2["numbers"], "top-images", NAMES) is None


def test_names_in_an_archive_are_never_paths(tmp_path, indices):
    with tarfile.open(tmp_path / "ILSVRC2012_img_train.tar", "w") as outer:
        inside = io.BytesIO()
        with tarfile.open(fileobj=inside, mode="w") as inner:
            made.add(inner, "../../escaped.JPEG", made.encoded(0, 0, odd=False))
            made.add(inner, "/tmp/absolute.JPEG", made.encoded(0, 1, odd=False))
            link = tarfile.TarInfo("link.JPEG")
            link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
            inner.addfile(link)
        made.add(outer, "../n01440764.tar", inside.getvalue())
    images = found(tmp_path, indices)["train"]
    assert images.names == ["absolute.JPEG", "escaped.JPEG"]
    assert made.label_of(images[1][0]) == 0


def test_what_is_damaged_or_strange_is_named(archives, indices, tmp_path):
    train = tmp_path / "ILSVRC2012_img_train.tar"
    train.write_bytes((archives / "ILSVRC2012_img_train.tar").read_bytes()[:100_000])
    with pytest.raises(UsageError, match=r"ILSVRC2012_img_train.tar is damaged or truncated.*fetch it again"):
        found(tmp_path, indices)
    train.unlink()
    with tarfile.open(train, "w") as outer:
        made.add(outer, "n99999999.tar", (archives / "ILSVRC2012_img_val.tar").read_bytes())
    with pytest.raises(UsageError, match=r"classes that ImageNet-1K does not have: n99999999; expected .*n01440764"):
        found(tmp_path, indices)
    train.unlink()
    shutil.copy(archives / "ILSVRC2012_img_val.tar", tmp_path)
    with pytest.raises(UsageError, match=r"labels are missing: put ILSVRC2012_devkit_t12.tar.gz"):
        found(tmp_path, indices)
    for content in (b"no archive", gzip.compress(b"no tar"), (archives / DEVKIT).read_bytes()[:5000]):
        (tmp_path / DEVKIT).write_bytes(content)
        with pytest.raises(UsageError, match=r"devkit.* is damaged.*fetch it again"):
            found(tmp_path, indices)
