"""Images that grow: the side of every epoch with both loaders, also after a resume; evaluation at the full side."""

import json

import numpy as np
import pytest

from data.progressive import Ramp
from infvit.errors import UsageError
from tests.data.digits_run import Recorder, datamodule, trainer


def ffcv_resolution(epoch: int) -> int:
    """The side in FFCV's ResNet-50 of 88 epochs, as its script computes it, at a patch of 16 and up to 224 pixels."""
    return int(np.round(np.interp([epoch], [65, 76], [160, 224])[0] / 16)) * 16


def test_sides_are_ffcvs_multiples_of_the_patch_and_full_at_the_end():
    ramp = Ramp(start=160, begin=65 / 88, end=76 / 88, epochs=88, multiple=16)
    sides = [ramp.side(epoch, 224) for epoch in range(88)]
    assert sides == [ffcv_resolution(epoch) for epoch in range(88)]
    assert sorted(set(sides)) == [160, 176, 192, 208, 224]
    assert ramp.pixels(224) == pytest.approx(np.mean(np.square(sides)) / 224**2)
    assert [Ramp(4, 0.5, 0.5, 4, 2).side(epoch, 8) for epoch in range(4)] == [4, 4, 8, 8]


@pytest.mark.parametrize(
    ("start", "begin", "end", "says"),
    [
        (150, 0, 0.8, "start=150 is not a multiple of the patch size 16: use 144 or 160"),
        (160, 0.8, 0.7, "expected 0 ≤ begin ≤ end ≤ 0.9"),
        (160, 0, 0.95, "the last of 10 epochs trains at the full side"),
    ],
)
def test_a_ramp_that_is_out_of_range_is_refused(start, begin, end, says):
    with pytest.raises(UsageError, match=says):
        Ramp(start, begin, end, epochs=10, multiple=16)


def fitted(reader, cache, ramp, epochs, checkpoint=None, workers=0):
    fit, module = trainer(max_epochs=epochs), Recorder()
    fit.fit(module, datamodule=datamodule(cache, reader, workers=workers, progressive=ramp), ckpt_path=checkpoint)
    return fit, module


GROWING = ("torch", Ramp(start=4, begin=0.25, end=0.75, epochs=4, multiple=2), [4, 4, 6, 8])
AT_ONCE = ("ffcv", Ramp(start=4, begin=0.5, end=0.5, epochs=2, multiple=2), [4, 8])  # FFCV compiles for each side


@pytest.mark.slow
@pytest.mark.parametrize(("reader", "ramp", "sides"), [GROWING, AT_ONCE], indirect=["reader"])
def test_each_epoch_has_its_side_also_after_a_resume_and_evaluation_the_full_one(reader, ramp, sides, tmp_path):
    epochs, middle = range(len(sides)), len(sides) // 2
    first, module = fitted(reader, tmp_path, ramp, middle)
    first.save_checkpoint(tmp_path / "middle.ckpt")
    _, resumed = fitted(reader, tmp_path, ramp, len(sides), tmp_path / "middle.ckpt", workers=1)
    assert list(module.trained) == list(epochs[:middle])
    assert list(resumed.trained) == list(epochs[middle:])
    for epoch, batches in (module.trained | resumed.trained).items():
        assert [batch[0].shape for batch in batches] == [(128, 3, sides[epoch], sides[epoch])] * 11
    assert module.validated | resumed.validated == {epoch: {8} for epoch in epochs}


@pytest.mark.slow
def test_a_growing_run_has_a_variant_and_is_evaluated_at_the_full_side(cli):
    ramp = {"start": 4, "begin": 0.3, "end": 0.6}
    grows = [
        "+progressive=from160",
        *(f"recipe.augmentation.progressive.{name}={value}" for name, value in ramp.items()),
    ]
    short = ["recipe.epochs=3", "recipe.warmup_epochs=1"]
    outcome = cli("train", "experiment=digits", "data/loader=torch", "logger=csv", *short, *grows).ok()
    (folder,) = outcome.runs()
    result = json.loads((folder / "result.json").read_text())
    assert "progressive=from160" in result["variant"]
    assert result["metrics"]["test/top1"] == pytest.approx(result["metrics"]["val/top1"])
    measured = cli("eval", f"ckpt={folder / 'checkpoints' / 'last.ckpt'}").ok()
    assert f"top-1 {100 * result['metrics']['test/top1']:.2f}%" in measured.out
