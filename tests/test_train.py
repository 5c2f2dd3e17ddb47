"""The command line: a run and what it leaves, exact repetition and resumption, sweeps that survive a failure."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from callbacks.loggers import ResumableCSVLogger
from tests.conftest import result

ROOT = Path(__file__).parents[1]

pytestmark = pytest.mark.slow
QUICK = ["experiment=digits", "recipe.epochs=3", "recipe.warmup_epochs=1"]
ALONE = [*QUICK, "data/loader=torch", "logger=csv"]
SMALL = ["size.depth=2", "size.dim=16"]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    return {"epoch": torch.tensor(checkpoint["epoch"]), **checkpoint["state_dict"]}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("loader", ["ffcv", "torch"])
def test_a_run_leaves_its_result_config_checkpoint_and_logs(cli, loader, monkeypatch):
    if loader == "ffcv":
        pytest.importorskip("ffcv")
    hyperparameters: dict = {}
    monkeypatch.setattr(ResumableCSVLogger, "log_hyperparams", lambda _, params: hyperparameters.update(params))
    outcome = cli("train", *QUICK, f"data/loader={loader}").ok()
    (folder,) = outcome.runs()
    left = result(folder)
    assert left["status"] == "finished"
    assert left["model"] == "linear_infvit"
    assert left["attention"] == "LinearInfSA"
    assert left["loader"] == loader
    assert left["data_fingerprint"]
    assert left["num_classes"] == 10
    assert [point["epoch"] for point in left["curves"]] == [0, 1, 2]
    assert all(0 < point[f"gamma/{block}"] < 1 for point in left["curves"] for block in range(4))
    assert hyperparameters["row"] == "linear_infvit recipe.epochs=3 recipe.warmup_epochs=1"
    assert hyperparameters["flops_forward"] == left["flops_forward"] > 0
    assert 0.2 < left["metrics"]["test/top1"] <= left["metrics"]["test/top5"] <= 1
    assert left["metrics"]["test/top1"] == pytest.approx(left["metrics"]["val/top1"])  # 8 × 8 pixels, not resampled
    assert left["train_images_per_second"] > 0
    assert "learning rate 0.004" in outcome.out
    assert (folder / ".hydra" / "config.yaml").is_file()
    assert (folder / "checkpoints" / "last.ckpt").is_file()
    header = (folder / "metrics.csv").read_text().splitlines()[0]
    for column in ("grad_norm", "gamma/0.0", "images_per_second", "lr-AdamW", "dead_heads/0"):
        assert column in header
    assert list(folder.glob("wandb/offline-run-*/run-*.wandb"))

    monkeypatch.setitem(sys.modules, "ffcv", None)  # evaluation needs no FFCV, whatever trained the model
    measured = cli("eval", f"ckpt={folder / 'checkpoints' / 'last.ckpt'}").ok()
    assert f"top-1 {100 * left['metrics']['test/top1']:.2f}%" in measured.out


def test_a_seed_gives_equal_weights_also_where_it_is_stopped_and_resumed_and_another_seed_does_not(cli):
    mixup = "recipe.mixup={_target_: timm.data.Mixup, _partial_: true, mixup_alpha: 0.8, label_smoothing: 0.0}"
    runs = {
        "whole": [],
        "again": [],
        "other": ["seed=1"],
        "stopped": ["trainer.max_epochs=2"],
        "resumed": ["resume=stopped/checkpoints/last.ckpt"],
    }
    for name, arguments in runs.items():
        cli("train", *ALONE, mixup, "recipe.model.drop_path=0.2", *SMALL, f"hydra.run.dir={name}", *arguments).ok()
    whole, again, other, stopped, resumed = (weights(Path(name)) for name in runs)
    assert same(whole, again)
    assert same(whole, resumed)
    assert not same(whole, other)
    assert not same(whole, stopped)
    assert [point["epoch"] for point in result(Path("resumed"))["curves"]] == [0, 1, 2]


def wandb_state(run: Path) -> str:
    inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", run]
    summary = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
    return next(line.split(maxsplit=1)[1] for line in summary.splitlines() if line.startswith("state"))


def test_a_sweep_ends_with_its_comparison_and_a_failing_job_leaves_the_others(cli):
    """Each job is a W&B run of its own."""
    short = [*QUICK, "data/loader=torch", "recipe.epochs=1", "recipe.warmup_epochs=0"]
    outcome = cli("train", "-m", *short, "model=vit,linear_infvit", "seed=0", "recipe.optimizer.opt=adamw,nothing")
    assert outcome.code == 1
    assert "2 jobs of the sweep did not finish" in outcome.err
    assert sorted(result(folder)["status"] for folder in outcome.runs()) == ["failed", "failed", "finished", "finished"]
    runs = [run for folder in outcome.runs() for run in folder.glob("wandb/offline-run-*")]
    assert sorted(wandb_state(run).split()[0] for run in runs) == ["failed", "failed", "finished", "finished"]
    sweep = next(outcome.folder.glob("runs/digits/*_sweep"))
    assert len(list(sweep.glob("wandb/offline-run-*"))) == 1  # the comparison
    for file in ("comparison.md", "comparison.csv", "comparison.html", "curves.png", "accuracy_vs_flops.png"):
        assert (sweep / file).stat().st_size > 0
    for name in ("vit", "linear_infvit"):
        assert name in (sweep / "comparison.md").read_text()
    assert max(len(line) for line in outcome.out.splitlines() if "│" in line or "linear_infvit" in line) <= 200


def test_two_processes_are_one_job_in_one_folder(tmp_path, data_cache):
    # One process looks at maps between the epochs, and the other does not wait for ever.
    arguments = [
        "-m",
        *ALONE,
        *SMALL,
        "trainer=ddp_cpu",
        "recipe.epochs=2",
        "callbacks.attention_maps.every_n_epochs=1",
    ]
    arguments += ["model=vit", "seed=0"]
    environment = {**os.environ, "INFVIT_CACHE": str(data_cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    left = [path.parent for path in tmp_path.glob("runs/**/result.json")]
    assert len(left) == len(list(tmp_path.glob("runs/**/metrics.csv"))) == 1
    for folder in left:
        assert result(folder)["status"] == "finished"
        assert result(folder)["hardware"]["devices"] == 2
        assert (folder / "attention.png").is_file()
        assert len(list(folder.glob("maps/*.png"))) == 2
    assert "no attention picture" not in done.stdout
    assert len(list(tmp_path.glob("runs/digits/*"))) == 1
