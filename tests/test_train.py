"""The command line: a run and what it leaves, exact repetition and resumption, sweeps that survive a failure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from callbacks.loggers import ResumableCSVLogger

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
QUICK = ["experiment=digits", "recipe.epochs=3", "recipe.warmup_epochs=1"]
ALONE = [*QUICK, "data/loader=torch", "logger=csv"]


def result(folder: Path) -> dict:
    return json.loads((folder / "result.json").read_text())


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
    outcome = cli("train", *QUICK, f"data/loader={loader}")
    assert outcome.code == 0, outcome.err
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
    measured = cli("eval", f"ckpt={folder / 'checkpoints' / 'last.ckpt'}")
    assert measured.code == 0, measured.err
    assert f"top-1 {100 * left['metrics']['test/top1']:.2f}%" in measured.out


def test_one_seed_run_twice_gives_equal_weights_and_another_seed_does_not(cli):
    for seed in (1, 1, 2):
        assert cli("train", *ALONE, f"seed={seed}", f"name=run{len(cli_runs())}").code == 0
    first, second, other = (weights(folder) for folder in cli_runs())
    assert same(first, second)
    assert not same(first, other)


def cli_runs() -> list[Path]:
    return sorted(path.parent for path in Path("runs").glob("**/result.json"))


@pytest.mark.parametrize(
    "recipe",
    [
        [],
        [
            "recipe.mixup={_target_: timm.data.Mixup, _partial_: true, mixup_alpha: 0.8, label_smoothing: 0.0}",
            "recipe.model.drop_path=0.2",
        ],
    ],
)
def test_stopped_at_an_epoch_and_resumed_equals_uninterrupted(cli, recipe):
    assert cli("train", *ALONE, *recipe, "name=a_whole").code == 0
    assert cli("train", *ALONE, *recipe, "name=b_stopped", "trainer.max_epochs=2").code == 0
    whole, stopped = cli_runs()
    resumed = cli("train", *ALONE, *recipe, "name=c_resumed", f"resume={stopped / 'checkpoints' / 'last.ckpt'}")
    assert resumed.code == 0, resumed.err
    assert not same(weights(whole), weights(stopped))
    assert same(weights(whole), weights(cli_runs()[2]))
    assert [p["epoch"] for p in result(cli_runs()[2])["curves"]] == [0, 1, 2]


def test_a_sweep_ends_with_its_comparison_and_a_failing_job_leaves_the_others(cli):
    outcome = cli("train", "-m", *ALONE, "model=vit,linear_infvit", "size.heads=4,5", "seed=0")
    assert outcome.code == 1
    assert "num_heads=5 does not divide dim=64" in outcome.err
    assert "2 jobs of the sweep did not finish" in outcome.err
    assert "Traceback" not in outcome.err
    sweep = next(outcome.folder.glob("runs/digits/*_sweep"))
    assert sorted(result(folder)["status"] for folder in outcome.runs()) == ["failed", "failed", "finished", "finished"]
    for file in ("comparison.md", "comparison.csv", "comparison.html", "curves.png", "accuracy_vs_flops.png"):
        assert (sweep / file).stat().st_size > 0
    for name in ("vit", "linear_infvit"):
        assert name in (sweep / "comparison.md").read_text()
    assert max(len(line) for line in outcome.out.splitlines() if "│" in line or "linear_infvit" in line) <= 200


def wandb_state(run: Path) -> str:
    inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--summary", run]
    summary = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout
    return next(line.split(maxsplit=1)[1] for line in summary.splitlines() if line.startswith("state"))


def test_each_job_of_a_sweep_is_a_wandb_run_of_its_own_and_a_failed_one_says_so(cli):
    short = [*QUICK, "data/loader=torch", "recipe.epochs=1", "recipe.warmup_epochs=0"]
    outcome = cli("train", "-m", *short, "model=vit", "seed=0", "recipe.optimizer.opt=adamw,nothing")
    assert outcome.code == 1
    runs = [run for folder in outcome.runs() for run in folder.glob("wandb/offline-run-*")]
    assert sorted(wandb_state(run).split()[0] for run in runs) == ["failed", "finished"]
    sweep = next(outcome.folder.glob("runs/digits/*_sweep"))
    assert len(list(sweep.glob("wandb/offline-run-*"))) == 1  # the comparison


@pytest.mark.parametrize("sweep", [False, True])
def test_two_processes_are_one_job_in_one_folder(tmp_path, data_cache, sweep):
    # One process looks at maps between the epochs, and the other does not wait for ever.
    arguments = [*ALONE, "trainer=ddp_cpu", "recipe.epochs=2", "callbacks.attention_maps.every_n_epochs=1"]
    arguments = ["-m", *arguments, "model=vit", "seed=0,1"] if sweep else arguments
    environment = {**os.environ, "INFVIT_CACHE": str(data_cache), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, ROOT / "train.py", *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    left = [path.parent for path in tmp_path.glob("runs/**/result.json")]
    assert len(left) == len(list(tmp_path.glob("runs/**/metrics.csv"))) == (2 if sweep else 1)
    for folder in left:
        assert result(folder)["status"] == "finished"
        assert result(folder)["hardware"]["devices"] == 2
        assert (folder / "attention.png").is_file()
        assert len(list(folder.glob("maps/*.png"))) == 2
    assert "no attention picture" not in done.stdout
    assert len(list(tmp_path.glob("runs/digits/*"))) == 1
