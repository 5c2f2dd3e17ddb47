"""Failures in a run: it continues where possible, and otherwise ends with one line that says what to do."""

import json
import multiprocessing
import os
import resource
import time
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.nn import functional as F

from callbacks import skip_nonfinite
from data.torch_loader import Views
from infvit.attention import SoftmaxAttention
from infvit.cli.run_errors import friendly_errors
from infvit.errors import UsageError
from infvit.measure.nonfinite import first_nonfinite
from infvit.module import Classifier
from infvit.run import checkpoint
from infvit.vit import VisionTransformer
from tests.data.photographs import shades

ROOT = Path(__file__).parents[2]
SMALL = ["experiment=digits", "data/loader=torch", "logger=csv", "size.depth=2", "size.dim=16"]
RUN = [*SMALL, "recipe.warmup_epochs=0", "recipe.epochs=1", "trainer.log_every_n_steps=1", "hydra.run.dir=run"]
"""11 steps of 128 images."""


def error_line(outcome) -> str:
    """The only line of the error, which result.json holds, too."""
    line = outcome.error()
    assert result()["status"] == "failed"
    assert result()["error"] == line.removeprefix("error: ")
    return line


def result() -> dict:
    return json.loads(Path("run/result.json").read_text())


def cut_short(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.slow
def test_a_step_that_is_not_finite_is_skipped_and_counted(cli, at_batch):
    before = []
    seen = []

    def poison(module, batch):
        before.append([p.detach().clone() for p in module.parameters()])
        batch[0][0, 0, 0, 0] = torch.inf

    def look(module, _):
        seen.append(all(torch.equal(a, b) for a, b in zip(before[0], module.parameters(), strict=True)))

    at_batch(4, poison)
    at_batch(5, look, last=11)
    done = cli("train", *RUN).ok()
    assert "step 4: loss or gradient is not finite, the step is skipped" in done.out
    assert seen[0]
    assert not any(seen[1:])
    assert result()["status"] == "finished"
    assert 0 < result()["curves"][0]["train/loss"] < 3
    header, *rows = (line.split(",") for line in Path("run/metrics.csv").read_text().splitlines())
    assert [row[header.index("steps_skipped")] for row in rows if row[header.index("steps_skipped")]] == ["1.0"]


@pytest.mark.slow
def test_many_skipped_steps_in_a_row_end_the_run_name_the_layer_and_leave_batch_and_weights(cli, at_batch):
    def break_layer(module, _):
        module.net.blocks[1].mlp.register_forward_hook(lambda *call: call[-1] / 0)

    at_batch(5, break_layer)
    ended = cli("train", *RUN, "callbacks.skip_nonfinite.stop_after=3")
    left = result()
    assert left["status"] == "diverged"
    assert "in 3 steps in a row, up to step 7; it began in the output of blocks.1.mlp (" in left["error"]
    assert left["error"] in ended.out
    batch = torch.load("run/checkpoints/offending_batch_rank0.pt", weights_only=True)
    assert batch["images"].shape == (128, 3, 8, 8)
    weights = checkpoint.read_checkpoint("run/checkpoints/last.ckpt")["state_dict"]
    assert all(value.isfinite().all() for value in weights.values())


EMA = "recipe.ema={_target_: lightning.pytorch.callbacks.EMAWeightAveraging, decay: 0.5, use_buffers: false}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["recipe.base_lr=1e30"], "val/loss became "),
        (["recipe.base_lr=1e30", EMA], "val/loss became "),
        (["trainer.precision=16-true"], "val/loss became nan in epoch 0"),
    ],
)
def test_a_run_whose_outputs_are_not_finite_has_not_finished(cli, words, says):
    ended = cli("train", *RUN, "+trainer.limit_train_batches=4", *words)
    left = result()
    assert left["status"] == "diverged", ended.out
    assert says in left["error"]
    assert "finished" not in ended.out
    assert "test/top1" not in left["metrics"]
    for path in Path("run/checkpoints").glob("*.ckpt"):
        assert all(value.isfinite().all() for value in checkpoint.read_checkpoint(path)["state_dict"].values())


@pytest.mark.parametrize("part", ["state_dict", "current_model_state"])
def test_weights_that_are_not_finite_do_not_replace_the_last_finite_ones(tmp_path, capsys, part):
    io = checkpoint.AtomicCheckpointIO()
    io.buffers = {"mask"}
    good = {"weight": torch.ones(2), "mask": torch.tensor([0.0, -torch.inf])}
    io.save_checkpoint({"state_dict": good, "current_model_state": good}, tmp_path / "step1.ckpt")
    bad = {"state_dict": good, "current_model_state": good, part: good | {"weight": torch.tensor([1.0, torch.nan])}}
    for step in (2, 3):
        io.save_checkpoint(bad, tmp_path / f"step{step}.ckpt")
    assert [path.name.partition("-")[0] for path in checkpoint.newest_first(tmp_path)] == ["step1"]
    assert capsys.readouterr().out.count("step2: weight is not finite, no checkpoint is written") == 1
    assert io.not_finite == "weight"
    io.save_checkpoint({"state_dict": good}, tmp_path / "step4.ckpt")
    assert (tmp_path / "last.ckpt").resolve().name.startswith("step4-")
    assert not io.not_finite


def test_a_gradient_that_is_not_finite_is_found_in_its_layer():
    net = VisionTransformer(SoftmaxAttention, 4, 2, num_classes=3, dim=8, depth=2, num_heads=2)
    images, labels = torch.randn(2, 3, 4, 4), torch.tensor([0, 1])
    assert first_nonfinite(net, images, labels) is None
    net.blocks[0].register_forward_hook(lambda *call: call[-1] + 0 * (call[-1] - call[-1].detach()).sqrt())
    assert "blocks.0" in first_nonfinite(net, images, labels)


def test_the_fused_step_of_gpus_is_skipped_by_a_flag_and_otherwise_equals_the_plain_one():
    def trained(fused: bool) -> torch.Tensor:
        torch.manual_seed(0)
        net = torch.nn.Linear(4, 2)
        optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
        for step in range(4):
            if fused and step == 1:
                skip_nonfinite.use_fused_kernels(optimizer)  # as in a resumed run
            optimizer.zero_grad()
            F.mse_loss(net(torch.ones(3, 4)), torch.ones(3, 2)).backward()
            bad = step == 2
            if fused and step:
                optimizer.found_inf = torch.tensor(float(bad))
            elif bad:
                continue
            optimizer.step()
        return net.weight.detach()

    torch.testing.assert_close(trained(fused=True), trained(fused=False))


@pytest.mark.slow
def test_a_full_disk_costs_checkpoints_but_neither_the_run_nor_earlier_checkpoints(cli, at_batch):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = []

    def fill(*_):
        before.extend(checkpoint.newest_first(Path("run/checkpoints")))
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))

    at_batch(5, fill)
    try:
        done = cli("train", *RUN, "checkpoint.every_minutes=0")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert done.code == 0, done.err
    assert result()["status"] == "finished"
    (line,) = [line for line in done.out.splitlines() if "cannot be written" in line]
    assert "File too large" in line
    assert checkpoint.newest_first(Path("run/checkpoints")) == before
    assert len(before) == checkpoint.KEPT
    for path in before:
        checkpoint.read_checkpoint(path)
    assert Path("run/checkpoints/last.ckpt").resolve() == before[0].resolve()
    assert not list(Path("run/checkpoints").glob("*.part"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (
            "training_step",
            ["of 32 images a device", "batch_size=64, 1 × 2", "accumulate_grad_batches=4 ", "16 images"],
        ),
        ("validation_step", ["256 images", "data.module.eval_batch_size=128"]),
    ],
)
def test_out_of_memory_names_the_setting_that_keeps_the_recipes_batch(cli, monkeypatch, step, expected):
    monkeypatch.setattr(Classifier, step, lambda *_: torch.empty(2**48))
    line = error_line(cli("train", *RUN, "recipe.batch_size=64", "trainer.accumulate_grad_batches=2"))
    for words in ["out of memory", *expected]:
        assert words in line


@pytest.mark.slow
def test_a_reading_process_that_dies_is_one_line(cli, at_batch):
    def kill(*_):
        for process in multiprocessing.active_children():
            process.kill()
        time.sleep(5)  # until torch's handler of the signal raises

    at_batch(3, kill)
    line = error_line(cli("train", *RUN, "data.module.workers=1"))
    assert "a process that reads images died" in line
    assert "Killed" in line


def test_a_batch_of_a_process_that_is_already_dead_is_one_line():
    context = torch.multiprocessing.get_context("fork")
    batches = context.SimpleQueue()
    reader = context.Process(target=lambda: batches.put(torch.ones(1)))
    reader.start()
    reader.join()
    with pytest.raises(UsageError, match="a process that reads images died"), friendly_errors(Trainer(), None, None):
        batches.get()


@pytest.mark.slow
def test_a_reading_process_that_hangs_is_one_line(cli, monkeypatch):
    def read(views, seen):
        if seen[0] == 500:
            time.sleep(1000)
        return real(views, seen)

    real = Views.__getitem__
    monkeypatch.setattr(Views, "__getitem__", read)
    line = error_line(cli("train", *RUN, "data.module.workers=1", "+data.loader.timeout=3"))
    assert "no images for 3 s: a process that reads them hangs, or its disk; resume with the same command" in line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "workers", "expected"), [(Path.unlink, 0, "cannot be read"), (cut_short, 1, "has changed")]
)
def test_images_removed_or_changed_while_they_are_read_are_reported_in_one_line(
    cli, at_batch, tmp_path, workers, damage, expected
):
    images = [*shades(tmp_path / "images", 16).rglob("*.png")]
    at_batch(2, lambda *_: [damage(path) for path in images if path.is_file()])
    data = ["data=imagefolder", f"data.root={tmp_path / 'images'}", f"data.module.workers={workers}"]
    line = error_line(cli("train", *RUN, *data, "recipe.batch_size=2"))
    assert expected in line
    assert ".png" in line
    assert len(line) < 400
