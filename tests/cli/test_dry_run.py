"""The dry run prints what the run takes, and leaves no result."""

import dataclasses
import importlib.util
import re
from pathlib import Path

import pytest

from data.progressive import Ramp
from infvit.cli.dry_run import StepTimer, estimate
from infvit.measure.cost import cost
from infvit.run.identity import recipe_hash
from tests.cli.test_conf import composed
from tests.data.digits_run import trainer
from train import build

ROOT = Path(__file__).parents[2]
LEFT = {"config.yaml", "hydra.yaml", "overrides.yaml", "train.log", "train_ddp_process_1.log"}


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.glob("runs/**/*") if path.is_file()}


def digits(*overrides: str):
    """The composed run on digits, its data and its model."""
    cfg = composed("experiment=digits", "data/loader=torch", *overrides).copy()
    return cfg, *build(cfg)


@pytest.mark.slow
def test_it_prints_what_the_run_takes_and_leaves_no_result(cli):
    loader = "ffcv" if importlib.util.find_spec("ffcv") else "torch"
    accumulated = "trainer.accumulate_grad_batches=2"
    outcome = cli("train", "experiment=digits", f"data/loader={loader}", accumulated, "+dry_run=true").ok()
    printed = outcome.out
    assert max(map(len, printed[printed.index("model ") :].splitlines())) <= 80
    cfg, data, module = digits()
    counted = cost(module.net, 8)
    for words in (
        f"linear_infvit: 4 layers, {counted.parameters:,} parameters",
        "4.23M forward (2.11M MACs), 12.7M training, per image of 8 px",
        f"digits#{recipe_hash(cfg.recipe)}: 30 epochs",
        "128 = 1 × CPU × 2 accumulated × 64, 32-true",
        "0.004 (0.016 × 128 / 512)",
        f"#{data.fingerprint}: 1,437 images, 10 classes",
        "11 an epoch, 330 in all",
        "1,408 an epoch, 42,240 in all",
        f"images/s alone ({loader})",
        "device-hours",
    ):
        assert words in printed
    megabytes = re.search(r"2 checkpoints of ([\d.]+)MB", printed)
    assert float(megabytes[1]) == pytest.approx(3 * 4 * counted.parameters / 1e6, rel=0.1)  # weights and two moments
    assert (".beton files" in printed) == (loader == "ffcv")
    assert left(outcome.folder) <= LEFT
    assert not list(outcome.folder.rglob("wandb"))


def test_the_slower_of_steps_and_loader_makes_the_time(tmp_path):
    cfg, data, module = digits("recipe.epochs=10")
    done = StepTimer(tmp_path)
    done.side = 8
    done.steps, done.batches, done.memory, done.checkpoint_size = [9.0, 0.75, 1.25], 11, 10**9, 10**6

    counted = cost(module.net, 8)

    def printed(loaded: float, ramp: Ramp | None = None) -> str:
        done.loader_rate = loaded
        return "\n".join(
            " ".join(row) for row in estimate(cfg, data, module, trainer(max_epochs=10), done, counted, ramp)
        )

    fast, slow = printed(1e6), printed(64.0)
    training, validation = 11 * 10, 10 * 360 / 128 * counted.flops_forward / counted.flops_training
    assert "speed 128 images/s by steps of 0.750 and 1.25 s, after a first of 9.00 s" in fast
    assert "not the bottleneck" in fast
    assert f"about 1 min {training + validation - 60:.0f} s, {validation:.1f} s of it" in fast
    assert ": the bottleneck" in slow
    assert f"about {(2 * 110 + 3600 / 64) // 60:.0f} min {(2 * 110 + 3600 / 64) % 60:.0f} s, 56 s of it" in slow
    assert "from 4 to 8 px: 62% of the pixels" in printed(1e6, Ramp(4, 0.5, 0.5, 10, 2))
    counted = dataclasses.replace(counted, macs_forward=None, flops_forward=None, flops_training=None)
    assert "FLOPs – forward (– MACs), – training, per image of 8 px\nrecipe" in printed(1e6)


@pytest.mark.slow
def test_the_steps_are_at_the_full_side_and_a_sweep_of_dry_runs_makes_no_comparison(cli):
    grows = ["+progressive=from160", "recipe.augmentation.progressive.start=4"]
    alone = ["data/loader=torch", "logger=csv", "model=vit", "seed=0", "dry_run=true"]
    outcome = cli("train", "-m", "experiment=digits", *grows, *alone).ok()
    assert "per image of 8 px" in outcome.out
    assert "from 4 to 8 px" in outcome.out
    assert left(outcome.folder) <= LEFT | {"0", ".lock", "multirun.yaml"}


@pytest.mark.slow
def test_two_ranks(two_processes):
    folder, printed = two_processes("experiment=digits", "data/loader=torch", "logger=csv", "+dry_run=true")
    assert printed.count("128 = 2 × CPU × 64, 32-true") == 1
    assert "11 an epoch, 330 in all" in printed
    assert left(folder) <= LEFT
