"""The 5,000 MNIST images and the parts of a data set: real, fixed, disjoint, named by their content."""

import numpy as np
import pytest

from data.datasets.arrays import HeldOut
from data.datasets.digits import Digits
from data.datasets.mnist5k import MNIST5k


def test_the_split_is_4000_and_1000_images_with_equally_many_of_each_digit():
    train, test = MNIST5k().split("train"), MNIST5k().split("val")
    assert np.bincount(train.labels).tolist() == [400] * 10
    assert np.bincount(test.labels).tolist() == [100] * 10
    seen = {train.pixels[i].tobytes() for i in range(len(train))}
    assert not any(test.pixels[i].tobytes() in seen for i in range(len(test)))
    image, label = test[0]
    assert (image.size, image.mode, label) == ((28, 28), "RGB", int(test.labels[0]))
    assert image.getextrema()[0][1] > 200


def test_the_fingerprint_is_of_the_content_and_known():
    """Results of other machines name these images by it: it may change only if the data or the split do."""
    assert MNIST5k().split("train").fingerprint()[:16] == "516d6160a3f585aa"
    assert MNIST5k().split("val").fingerprint()[:16] == "8887c577ab0e7872"
    changed = MNIST5k().split("val")
    changed.pixels = changed.pixels.copy()
    changed.pixels[0, 14, 14] ^= 1
    assert changed.fingerprint() != MNIST5k().split("val").fingerprint()


@pytest.mark.parametrize("source", [Digits(), MNIST5k()])
def test_what_is_held_out_is_a_fixed_part_of_the_training_images_class_by_class(source):
    train, held = HeldOut(source, 0.2).split("train"), HeldOut(source, 0.2).split("val")
    whole = source.split("train")
    assert sorted([*train.indices, *held.indices]) == list(range(len(whole)))
    assert abs(np.bincount(held.labels) / np.bincount(whole.labels) - 0.2).max() < 0.01
    assert held[3][1] == held.labels[3] == whole.labels[held.indices[3]]
    assert np.array_equal(np.asarray(held[3][0]), np.asarray(whole[int(held.indices[3])][0]))
    assert held.fingerprint() == HeldOut(source, 0.2).split("val").fingerprint()
    assert len({part.fingerprint() for part in (train, held, whole, HeldOut(source, 0.3).split("val"))}) == 4
