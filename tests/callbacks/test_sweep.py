"""Sweeps: what is finished is not run again, one process per folder, jobs in parallel, progress, the tables' twins."""

import importlib
import itertools
import json
import multiprocessing
import os
import shlex
import subprocess
import sys
import time
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest
import torch
from hydra.core.utils import JobReturn
from hydra.types import RunMode
from omegaconf import OmegaConf

from callbacks.sweep.best_recipe import SaveBestRecipe
from callbacks.sweep.progress import SweepProgress, progress
from infvit.compare import Comparison
from infvit.run import code
from infvit.run.files import FolderLock

ROOT = Path(__file__).parents[2]
SHORT = [
    "data/loader=torch",
    "logger=csv",
    "recipe.epochs=1",
    "recipe.warmup_epochs=0",
    "+trainer.limit_train_batches=3",
]
QUICK = ["-m", "experiment=digits", *SHORT]
UNCOMPARED = ["-m", "~hydra.callbacks.comparison", *QUICK[1:]]


def results(folder: Path) -> dict[str, dict]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("runs/*/*_sweep/*/result.json"))]
    return {f"{result['model']} {result['variant']} {result['seed']}": result for result in found}


def started(folder: Path) -> dict[str, str]:
    return {name: result["started"] + str(result["seconds"]) for name, result in results(folder).items()}


@pytest.mark.slow
def test_the_same_command_again_runs_only_what_is_not_finished(cli):
    first = cli("train", *QUICK, "model=vit", "seed=0,1").ok()
    assert "1 of 2 jobs · ETA 0:0" in first.out
    so_far = first.out.partition("1 of 2 jobs")[2].partition("job 1:")[0]
    assert so_far.splitlines()[1].split()[:2] == ["model", "seeds"]  # the table so far
    assert max(map(len, so_far.splitlines())) <= 80
    before = started(first.folder)
    assert len(before) == 2

    path = next(first.folder.glob("runs/digits/digits_sweep/vit_seed1_*/result.json"))
    for status in ("failed", "running"):  # as a job leaves it that broke, or whose process was killed
        path.write_text(path.read_text().replace('"status": "finished"', f'"status": "{status}"'))
        again = cli("train", *QUICK, "model=vit", "seed=0,1,2").ok()
        assert "skipped: vit seed 0 is finished" in again.out
        assert "skipped: vit seed 1" not in again.out
        after = started(again.folder)
        assert len(after) == 3  # the skipped one counts in the table
        assert [name for name in before if before[name] == after[name]] == [next(n for n in before if n.endswith(" 0"))]
    assert "3 of 3 jobs, 2 of them finished before" in again.out
    table = (path.parents[1] / "comparison.csv").read_text()
    assert "0 1 2" in table


@pytest.mark.slow
def test_a_finished_job_of_another_configuration_does_not_count(cli):
    fixed = ["hydra.sweep.subdir=here", "model=vit", "seed=0"]
    assert cli("train", *UNCOMPARED, *fixed).code == 0
    assert "skipped" in cli("train", *UNCOMPARED, *fixed).out
    other = cli("train", *UNCOMPARED, *fixed, "recipe.model.drop_path=0.1").ok()
    assert "skipped" not in other.out


OPERATOR = """
from torch import nn
from own_operator_scale import scale

class Mine(nn.Module):
    def __init__(self, dim, num_heads):
        super().__init__()
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):
        return scale * self.proj(x)
"""


@pytest.mark.slow
def test_a_job_runs_again_when_its_code_has_changed_and_the_rows_are_not_averaged(cli, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "conf/model").mkdir(parents=True)
    model = {"name": "mine", "net": "${backbone}"}
    model["attention"] = {"_target_": "own_operator.Mine", "_partial_": True}
    OmegaConf.save(OmegaConf.create(model), tmp_path / "conf/model/mine.yaml")
    (tmp_path / "own_operator_scale.py").write_text("scale = 1")
    few = ["size.depth=1", "size.dim=16", "+trainer.limit_val_batches=1"]

    def swept(text: str, *words: str):
        """What the command prints in a process that has not imported the operator, which it holds in memory."""
        (tmp_path / "own_operator.py").write_text(text)
        for name in ("own_operator", "own_operator_scale"):
            sys.modules.pop(name, None)
        code._own.cache_clear()
        code._definition.cache_clear()
        importlib.invalidate_caches()
        return cli("train", "--config-dir", "conf", *words, *few, "model=mine", "seed=0").ok()

    assert "its code has changed" not in swept(OPERATOR, *QUICK).out
    (first,) = results(tmp_path).values()
    assert "skipped: mine seed 0 is finished" in swept(f"# a comment{OPERATOR}", *QUICK).out
    again = swept(OPERATOR.replace("scale *", "0 * scale *"), *QUICK).out
    runs = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("runs/digits/*_sweep/*/result.json"))]
    (second,) = [run for run in runs if run["code"] != first["code"]]
    changed = "mine seed 0: its code has changed since it finished"
    assert f"{changed} (#{first['code']} → #{second['code']}): it runs again" in again
    assert len(runs) == 2
    assert f"older code #{first['code']}, not #{second['code']}" in again
    (tmp_path / "own_operator_scale.py").write_text("scale = 2")
    assert (
        "resume=auto: no run of this configuration" in swept(OPERATOR, "experiment=digits", *SHORT, "resume=auto").out
    )
    (tmp_path / "own_operator_scale.py").write_text("scale = 3")
    assert changed in swept(OPERATOR, "experiment=digits", *SHORT, "resume=auto").out
    assert first["command"].startswith(f"python train.py --config-dir {tmp_path / 'conf'} model=mine seed=0 ")


@pytest.mark.slow
def test_a_sweep_fails_by_its_own_jobs_and_not_by_those_that_earlier_ones_left(cli):
    first = cli("train", *QUICK, "model=vit", "seed=0", "size.heads=4,5")
    assert first.code == 1
    assert "error: 1 jobs of the sweep did not finish: vit_seed0_" in first.err
    cli("train", *QUICK, "model=vit", "seed=1").ok()
    sweep = first.folder / "runs/digits/digits_sweep"
    assert "1 failed" in (sweep / "comparison.md").read_text()
    again = cli("train", *QUICK, "model=vit", "seed=0", "size.heads=4,5")
    assert again.code == 1
    assert "error: 1 jobs" in again.err


def hold(folder: Path, locked: Event) -> None:
    """Keeps the folder as a run of another process does, until it is killed."""
    lock = FolderLock(folder)
    locked.set()
    time.sleep(600)
    lock.release()


@pytest.mark.slow
def test_two_sweeps_in_one_folder_are_refused_until_the_first_ends_however_it_ends(cli, tmp_path):
    fork = multiprocessing.get_context("fork")
    locked = fork.Event()
    holder = fork.Process(target=hold, args=(tmp_path / "runs/digits/digits_sweep", locked))
    holder.start()
    assert locked.wait(60)
    refused = cli("train", *UNCOMPARED, "model=vit", "seed=0")
    for words in (str(Path("runs/digits/digits_sweep")), str(holder.pid), "hydra.sweep.dir=", "name="):
        assert words in refused.error()
    assert not refused.runs()
    assert cli("train", *UNCOMPARED, "model=vit", "seed=0", "name=elsewhere").code == 0
    holder.kill()
    holder.join()
    assert cli("train", *UNCOMPARED, "model=vit", "seed=0").code == 0


@pytest.mark.slow
def test_jobs_in_parallel_share_the_cores_and_a_failing_one_leaves_the_others(tmp_path):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    arguments = [*QUICK, "model=vit,infvit", "size.heads=4,5", "seed=0", "recipe.epochs=2"]
    arguments += ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "threads=${threads_per_job:}"]
    environment = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    environment.pop("INFVIT_CACHE", None)  # none is written yet
    command = [sys.executable, ROOT / "train.py", *arguments]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    found = results(tmp_path)
    assert sorted(result["status"] for result in found.values()) == ["failed", "failed", "finished", "finished"]
    assert "2 jobs of the sweep did not finish" in done.stderr
    assert "num_heads=5 does not divide" in done.stderr
    assert "4 of 4 jobs" in done.stdout
    for result in found.values():
        assert result["sweep_command"] == shlex.join(["python", "train.py", *arguments])
        if result["status"] == "finished":
            assert result["hardware"]["threads"] == max(len(os.sched_getaffinity(0)) // 2, 1)
        else:
            assert result["error"].startswith("num_heads=5")
    lines = [line for line in done.stdout.splitlines() if "epoch" in line and "/2 ·" in line]
    assert len(lines) == 4
    assert all(line.startswith(("vit_seed0_", "infvit_seed0_")) for line in lines)  # lines have their job's name
    assert "\r" not in done.stdout


def test_a_job_that_is_started_again_counts_once(tmp_path, capsys):
    sweep = SweepProgress()
    sweep.jobs = 2
    (tmp_path / ".jobs").mkdir()
    for number in (0, 1, 1):
        with (tmp_path / ".jobs" / str(number)).open("a") as file:
            file.write("its folder\n")
        job = {"mode": RunMode.MULTIRUN, "sweep": {"dir": str(tmp_path)}, "job": {"num": number}}
        sweep.on_job_end(OmegaConf.create({"hydra": job}), JobReturn())
    assert [line.split(" · ")[0] for line in capsys.readouterr().out.splitlines() if "jobs" in line] == [
        "── 1 of 2 jobs",
        "── 2 of 2 jobs",
        "── 2 of 2 jobs",
    ]


def test_progress_counts_what_ran_for_the_time_that_is_left():
    assert progress([], 4, 0) == "0 of 4 jobs · ETA -:--:--"
    assert progress(["ran"], 4, 60) == "1 of 4 jobs · ETA 0:03:00"
    assert progress(["skipped", "skipped", "ran"], 5, 60) == "3 of 5 jobs, 2 of them finished before · ETA 0:02:00"


SLICES = {
    "equal_depth": "model=vit,infvit_24l",
    "attention_zoo": "model=vit,linear_infvit",
    "depth": "model=infvit size.depth=1,2",
    "ablation_gamma": "model=linear_infvit gamma=fixed,shared model.attention.gamma=0.5",
    "ablation_pooling": "model=vit recipe.model.class_token=True,False",
    "ablation_positions": "model=linear_infvit positions=std0.02,sincos",
    "ablation_hops": "model=infvit model.attention.hops=1,2",
    "resolution": "model=vit size.image_size=8,16",
}
"""Two rows of every table."""


@pytest.mark.slow
@pytest.mark.parametrize("experiment", SLICES)
def test_two_epochs_of_two_rows_of_every_table(cli, experiment):
    rows = SLICES[experiment].split()
    values = [
        [f"{key}={value}" for value in swept.split(",")] for key, _, swept in (row.partition("=") for row in rows)
    ]
    names = [" ".join(row).removeprefix("model=") for row in itertools.product(*values)]
    short = ["data/loader=torch", "logger=csv", "trainer.max_epochs=2"]
    few = [f"trainer.limit_{stage}_batches=1" for stage in ("test", "train", "val")]
    short += [f"+{word}" for word in few]
    table = ["-m", "~hydra.callbacks.comparison", f"experiment={experiment}", "+scale=cpu", *rows, "seed=0"]
    outcome = cli("train", *table, *short).ok()
    assert "2 of 2 jobs" in outcome.out
    found, expected = results(outcome.folder), {" ".join([name, *few]) for name in names}
    assert {" ".join(name.split()[:-1]) for name in found} == expected
    assert {result["status"] for result in found.values()} == {"finished"}
    sweep = outcome.folder / "runs" / experiment / f"{experiment}_cpu_sweep"
    assert len(Comparison.from_dirs([sweep]).rows) == 2
    if experiment == "ablation_gamma":
        for path in sweep.glob("*/checkpoints/last.ckpt"):
            gamma = torch.load(path, weights_only=True)["state_dict"]["net.blocks.0.attn.gamma_logit"]
            fixed = "gamma=fixed" in json.loads((path.parents[1] / "result.json").read_text())["variant"]
            assert bool((gamma == 0).all()) == fixed  # the logit of 0.5
            assert len(gamma) == (4 if fixed else 1)


@pytest.mark.slow
def test_a_search_never_reads_the_test_images_and_leaves_a_recipe_for_all_models(cli, monkeypatch):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    test_images = []
    monkeypatch.setattr("data.datasets.arrays.GreyImages.__getitem__", watched(test_images))
    search = ["-m", "experiment=search", *SHORT, "hydra.sweeper.n_trials=2", "recipe.clip_grad=0.5"]
    outcome = cli("train", *search).ok()
    assert set(test_images) == {1437}  # the size of the training images; the test has 360
    found = list(results(outcome.folder).values())
    assert len(found) == 2
    assert all("test/top1" not in result["metrics"] for result in found)
    best = max(result["metrics"]["val/top1"] for result in found)
    assert f"best of the search: {100 * best:.2f}%" in outcome.out

    sweep = outcome.folder / "runs/search/search_sweep"
    written = OmegaConf.load(sweep / "recipe" / "digits_searched.yaml")
    won = {result["recipe_hash"] for result in found if result["metrics"]["val/top1"] == best}
    assert written.clip_grad == 0.5
    header = (sweep / "recipe" / "digits_searched.yaml").read_text()
    for words in ("on vit alone", "best of 2 trials", "20% of the training images", "experiment=search"):
        assert words in header
    again = cli("train", *search)
    assert again.out.count("skipped: ") == 2  # the seeded sampler draws the same trials

    use = ["recipe=digits_searched", f"hydra.searchpath=[file://{sweep}]", "experiment=digits", *SHORT[:2]]
    for model in ("infvit", "linear_infvit"):
        assert cli("train", *use, f"model={model}", "+trainer.limit_train_batches=1", "trainer.max_epochs=1").code == 0
    used = [json.loads(path.read_text()) for path in outcome.folder.glob("runs/digits/*/result.json")]
    assert {result["recipe_hash"] for result in used} <= won
    assert {result["recipe"] for result in used} == {"digits_searched"}


def test_a_search_is_not_over_seeds(capsys):
    def started(*words: str):
        config = OmegaConf.create(
            {"hydra": {"sweeper": {"params": {"seed": "0,1,2", "x": 1}}, "overrides": {"task": words}}}
        )
        SaveBestRecipe("found").on_multirun_start(config)
        return config.hydra.sweeper.params

    assert started("+scale=cpu", "seed=3") == {"x": 1}
    with pytest.raises(SystemExit):
        started("seed=0,1")
    assert "error: a search over seed= finds the luckiest one: give one seed" in capsys.readouterr().err


def watched(sizes: list[int]):
    from data.datasets.arrays import GreyImages

    read = GreyImages.__getitem__

    def getitem(self, index):
        sizes.append(len(self))
        return read(self, index)

    return getitem


@pytest.mark.slow
@pytest.mark.parametrize("fraction", ["1", "-0.1"])
def test_a_validation_fraction_that_is_none(cli, fraction):
    line = cli("train", "experiment=digits", *SHORT, f"data.validation_fraction={fraction}").error()
    assert f"data.validation_fraction={float(fraction)}" in line or f"validation_fraction={fraction}" in line
