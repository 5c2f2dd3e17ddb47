"""What is made of records: torchmetrics' and timm's numbers, a bootstrap equal to its naive twin, tables that fit."""

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo, RealLabelsImagenet
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from infvit.measure.accuracy import bootstrap, table
from infvit.measure.accuracy.real import Real
from infvit.measure.accuracy.records import Records
from infvit.measure.accuracy.scores import Classes, difference, scores

SYNSETS = list(ImageNetInfo("imagenet-1k").label_names())


def made(n, classes, seed=0, sharpness=1.5):
    """Logits (n, classes) that are often right, and labels, in no order."""
    rng = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (n,), generator=rng)
    noise = torch.randn(n, classes, generator=rng)
    return sharpness * (noise + F.one_hot(labels, classes)), labels


def records_of(logits, labels):
    log_probs = logits.log_softmax(-1)
    order = logits.argsort(descending=True)[:, :5]
    label = log_probs[torch.arange(len(labels)), labels]
    confidence = log_probs.exp().max(-1).values
    return Records(np.arange(len(labels)), *(x.numpy() for x in (labels.int(), order.int(), label, confidence)))


def theirs(logits, labels):
    """The same by torchmetrics, from the logits."""
    classes = logits.shape[1]
    return {
        "top1": multiclass_accuracy(logits, labels, classes, average="micro").item(),
        "top5": multiclass_accuracy(logits, labels, classes, average="micro", top_k=5).item(),
        "loss": F.cross_entropy(logits, labels).item(),
        "ece": multiclass_calibration_error(logits, labels, classes, n_bins=15).item(),
    }


def test_every_number_and_interval_is_that_of_the_naive_bootstrap_by_torchmetrics(monkeypatch):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 60)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 7 * 150)  # several resamples at once, and a last part that is smaller
    logits, labels = made(150, 8)
    found, classes = scores(records_of(logits, labels))
    value = theirs(logits, labels)
    rng, samples, per_class = np.random.default_rng(bootstrap.SEED), [], []
    for _ in range(60):
        drawn = torch.from_numpy(rng.integers(150, size=150))
        samples.append(theirs(logits[drawn], labels[drawn]))
        hits = (logits[drawn].argmax(-1) == labels[drawn]).double()
        per_class.append([hits[labels[drawn] == label].mean().item() for label in range(8)])
    assert found.keys() == value.keys()
    for name, score in found.items():
        drawn = np.array([sample[name] for sample in samples])
        if name == "ece":
            assert drawn.mean() > value[name]  # which is why its interval is shifted
            drawn = np.maximum(drawn - drawn.mean() + value[name], 0)
        expected = (value[name], *np.percentile(drawn, [2.5, 97.5]))
        assert score == pytest.approx(expected, abs=1e-6), name
    assert classes.images.tolist() == np.bincount(labels).tolist()
    hits = (logits.argmax(-1) == labels).numpy()
    assert classes.top1.tolist() == pytest.approx([hits[labels == label].mean() for label in range(8)])
    ends = np.percentile(per_class, [2.5, 97.5], axis=0)
    assert np.array([classes.low, classes.high]) == pytest.approx(ends)


def test_an_interval_is_as_wide_as_the_binomials_and_narrower_for_a_paired_difference():
    logits, labels = made(2000, 10)
    other = logits + 0.3 * torch.randn(logits.shape, generator=torch.Generator().manual_seed(1))
    one, two = records_of(logits, labels), records_of(other, labels)
    top1 = scores(one)[0]["top1"]
    width = 2 * 1.96 * (top1.value * (1 - top1.value) / 2000) ** 0.5
    assert top1.high - top1.low == pytest.approx(width, rel=0.1)
    found, differing = difference(two, one)
    assert found.value == pytest.approx(scores(two)[0]["top1"].value - top1.value)
    assert differing == (other.argmax(-1) != logits.argmax(-1)).sum()
    assert 0 < found.high - found.low < 0.7 * width
    mirrored, _ = difference(one, two)
    assert (-mirrored.high, -mirrored.low) == pytest.approx((found.low, found.high))
    assert difference(one, one) == ((0, 0, 0), 0)


def test_a_class_without_images_has_no_line_and_one_that_is_always_right_no_width(tmp_path):
    logits, labels = torch.eye(4)[[0, 0, 1, 3]], torch.tensor([0, 0, 1, 1])
    _, classes = scores(records_of(logits, labels))
    assert classes.label.tolist() == [0, 1]
    assert (classes.low[0], classes.top1[0], classes.high[0]) == (1, 1, 1)
    table.write_classes(tmp_path / "classes.csv", ["a", "b", "c", "d"], classes)
    lines = (tmp_path / "classes.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in lines[1:]] == [["a", "a", "2", "1.0"], ["b", "b", "2", "0.5"]]


def test_real_labels_are_counted_as_timm_does():
    rng = np.random.default_rng(0)
    names = [f"ILSVRC2012_val_{i + 1:08d}.JPEG" for i in rng.permutation(50_000)]
    logits = torch.from_numpy(rng.normal(size=(400, 1000)))
    known = RealLabelsImagenet(names)
    for logit, name in zip(logits[:250], names, strict=False):  # right by their measure now and then
        logit[known.real_labels[name]] += 3
    known.add_result(logits)
    records = records_of(logits.float(), torch.from_numpy(rng.integers(1000, size=400)))
    real = Real.of(records, [f"val/n01440764/{name}" for name in names], SYNSETS)
    found, _ = scores(records, real)
    assert 0 < real.labelled.sum() == sum(len(known.real_labels[name]) > 0 for name in names[:400]) < 400
    assert 100 * found["real_top1"].value == pytest.approx(known.get_accuracy(1))
    assert 100 * found["real_top5"].value == pytest.approx(known.get_accuracy(5))
    assert found["real_top1"].low < found["real_top1"].value < found["real_top1"].high
    assert Real.of(records, names, SYNSETS[::-1]) is None  # the labels would mean other classes
    assert Real.of(records, [f"{i}.jpeg" for i in range(400)], SYNSETS) is None
    assert Real.of(records, [], SYNSETS) is None


def test_the_tables_fit_into_80_columns():
    columns = dict.fromkeys(("top1", "top5", "loss", "ece", "real_top1"), 1.0)
    row = columns | {f"{name}_{end}": 1.0 for name in columns for end in ("low", "high")}
    long = "vit_base_patch16_clip_224.laion2b_ft_in12k_in1k"
    rows = [row | {"name": name, "pipeline": "exact"} for name in ("vit", long)]
    rows.append(rows[0] | dict.fromkeys(("real_top1", "real_top1_low", "real_top1_high")))
    shown = table.scores(rows).splitlines()
    assert "ReaL %" in shown[0]
    assert [shown[i] for i in (2, 5, 8)] == ["vit", long, "vit"]  # never cut
    assert shown[4].split() == ["100.0–100.0", "100.0–100.0", "1.000–1.000", "100.0–100.0", "100.0–100.0"]
    assert shown[9].split() == ["exact", "100.0", "100.0", "1.000", "100.0", "–"]
    assert "ReaL" not in table.scores(rows[2:])
    places = np.arange(1000)
    classes = Classes(places, places + 1, places / 1000, *[places / 1000] * 3)
    shown += table.best_and_worst("vit, exact", SYNSETS, classes).splitlines()
    assert all(words in shown[-6] for words in ("best", "toilet tissue", "99.90%"))
    assert all(words in shown[-3] for words in ("tench", "1 image"))
    assert max(map(len, shown)) <= 80
