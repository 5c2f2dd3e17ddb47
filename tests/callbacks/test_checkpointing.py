"""Runs that are stopped or killed resume where they were; a checkpoint is complete or recognised as damaged."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from timm.data import Mixup

from callbacks.checkpointing import PeriodicCheckpoint
from callbacks.loggers import ResumableCSVLogger
from infvit.cli.run_folder import run_folder
from infvit.compare import Comparison
from infvit.compare.page import to_html
from infvit.errors import UsageError
from infvit.module import Classifier
from infvit.run import checkpoint
from tests.compare.conftest import make_result as make_result
from tests.conftest import result
from tests.data.photographs import shades

ROOT = Path(__file__).parents[2]
SMALL = ["experiment=digits", "data/loader=torch", "size.depth=1", "size.dim=16", "recipe.warmup_epochs=0"]
RUN = [*SMALL, "recipe.epochs=2", "trainer.log_every_n_steps=1"]


@pytest.fixture
def signals(at_batch):
    """`signals(SIGTERM, 5)`: the process sends itself the signal at the start of its 5th batch."""
    return lambda number, batch: at_batch(batch, lambda *_: os.kill(os.getpid(), number))


def history(run: Path) -> list[tuple[int, int]]:
    """(W&B's step, the trainer's step) for every row of an offline run."""
    inspect = [Path(sys.executable).with_name("wandb"), "leet", "inspect", "--json", run]
    lines = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
    rows = [json.loads(line)["history"]["item"] for line in lines if '"type":"history"' in line]
    return [(row["_step"], row["trainer/global_step"]) for row in rows if "trainer/global_step" in row]


@pytest.mark.slow
def test_sigterm_writes_a_checkpoint_and_the_printed_command_continues_the_same_curves(cli, signals):
    signals(signal.SIGTERM, 15)
    stopped = cli("train", *RUN)
    assert stopped.code == 128 + signal.SIGTERM
    (folder,) = stopped.runs()
    (line,) = [line for line in stopped.out.splitlines() if line.startswith("SIGTERM after step 14 (epoch 2 of 2)")]
    assert result(folder)["status"] == "interrupted"
    assert "resume=auto" in result(folder)["error"]
    _, script, *arguments = shlex.split(line.rpartition("resume with: ")[2])
    assert script == "train.py"

    resumed = cli("train", *arguments).ok()
    assert resumed.runs() == [folder]
    assert "resumes after step 14" in resumed.out
    assert result(folder)["status"] == "finished"
    assert [point["epoch"] for point in result(folder)["curves"]] == [0, 1]
    first, second = sorted(folder.glob("wandb/offline-run-*"))
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2]
    before, after = history(first), history(second)
    assert after[0][0] == before[-1][0] + 1
    steps = [step for _, step in before + after]
    assert steps == sorted(steps)
    assert steps[-1] == 22

    again = cli("train", *arguments).ok()
    assert "skipped" in again.out


@pytest.mark.slow
def test_accumulated_batches_draw_mixup_each_and_the_same_after_an_interruption(cli, signals, monkeypatch):
    drawn, step = [], Classifier.training_step

    def noted(self: Classifier, *arguments: object) -> torch.Tensor:
        draw = Mixup._params_per_batch
        with monkeypatch.context() as within:
            within.setattr(Mixup, "_params_per_batch", lambda mixup: drawn.append(draw(mixup)) or drawn[-1])
            return step(self, *arguments)

    monkeypatch.setattr(Classifier, "training_step", noted)
    mixup = "recipe.mixup={_target_: timm.data.Mixup, _partial_: true, mixup_alpha: 0.8, label_smoothing: 0.0}"
    run = [*SMALL, "recipe.epochs=1", "logger=csv", mixup, "recipe.batch_size=128", "resume=auto"]
    run.append("trainer.accumulate_grad_batches=2")
    assert cli("train", *run, "hydra.run.dir=reference").code == 0
    reference = drawn[:]
    assert len(reference) == len({mixing for mixing, _ in reference}) == 2 * 11
    drawn.clear()
    signals(signal.SIGTERM, 8)
    assert cli("train", *run, "hydra.run.dir=stopped").code == 143
    assert drawn == reference[:8]
    assert cli("train", *run, "hydra.run.dir=stopped").code == 0
    assert drawn == reference
    assert result(Path("reference"))["metrics"] == result(Path("stopped"))["metrics"]


@pytest.mark.slow
def test_a_run_resumes_with_the_same_images_elsewhere_and_not_with_others(cli, signals, tmp_path):
    """On the scratch disk of a node their folder changes."""
    shades(tmp_path / "one", 8)
    moved, others = (shutil.copytree(tmp_path / "one", tmp_path / name) for name in ("moved", "others"))
    Image.new("RGB", (8, 8)).save(others / "train" / "dark" / "0.png")
    run = ["data=imagefolder", "data.name=lights", "data/loader=torch", "size=tiny", "recipe=digits", "logger=csv"]
    run += ["recipe.batch_size=8", "recipe.epochs=2", "recipe.warmup_epochs=0", "resume=auto"]
    signals(signal.SIGTERM, 3)
    stopped = cli("train", *run, "data.root=one")
    assert stopped.code == 143, stopped.err
    assert "no run of this configuration to resume" in stopped.out
    assert "was trained on lights#" in cli("train", *run, "data.root=others").error()
    resumed = cli("train", *run, f"data.root={moved}").ok()
    assert "resumes after step 3" in resumed.out
    assert resumed.runs() == stopped.runs()


@pytest.mark.slow
def test_sigusr1_requeues_a_slurm_job_before_its_time_is_over(cli, signals, tmp_path, monkeypatch):
    requests = tmp_path / "requests"
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text(f'#!/bin/sh\necho "$@" >>{requests}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "417")
    signals(signal.SIGUSR1, 2)
    stopped = cli("train", *RUN, "logger=csv")
    assert stopped.code == 128 + signal.SIGUSR1
    assert "SIGUSR1 after step 1 " in stopped.out
    assert requests.read_text() == "requeue 417\n"


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_the_one_before_is_used_and_a_missing_link_restored(cli, signals):
    signals(signal.SIGTERM, 5)
    run = [*RUN, "logger=csv", "checkpoint.every_minutes=0", "hydra.run.dir=run", "resume=auto"]
    assert cli("train", *run).code == 143
    newest, before = checkpoint.newest_first(Path("run/checkpoints").resolve())
    assert Path("run/checkpoints/last.ckpt").resolve() == newest
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1  # as disks do
    newest.write_bytes(content)
    os.utime(newest)
    resumed = cli("train", *run).ok()
    assert f"{newest} is damaged" in resumed.out
    assert f"resumes after step 3, from {before}" in resumed.out
    assert len(checkpoint.newest_first(Path("run/checkpoints"))) == 2
    assert not list(Path("run/checkpoints").glob("*.part"))

    newest, before = checkpoint.newest_first(Path("run/checkpoints").resolve())
    checkpoint.link_last(before)  # as in a run killed before it linked its last checkpoint
    path = Path("run/result.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "running"}))
    assert cli("train", *run).code == 0  # nothing is left to train, and no checkpoint is written
    assert Path("run/checkpoints/last.ckpt").resolve() == newest


def test_checkpoints_are_ordered_by_step_and_the_one_just_written_stays(tmp_path):
    """Files dated ahead, after a clock that went back or a copy; a later step of a training that was given up."""
    io, ahead = checkpoint.AtomicCheckpointIO(), time.time() + 7200

    def steps() -> list[int]:
        return [checkpoint.step_of(path) for path in checkpoint.newest_first(tmp_path)]

    for step, kept in ((9, [9]), (10, [10, 9]), (100, [100, 10]), (11, [11, 10])):
        io.save_checkpoint({"state_dict": {}, "step": step}, tmp_path / f"step{step}.ckpt")
        assert (steps(), checkpoint.read_checkpoint(tmp_path / "last.ckpt")["step"]) == (kept, step)
        for path in checkpoint.newest_first(tmp_path):
            os.utime(path, (ahead + step, ahead + step))
    io.save_checkpoint({"state_dict": {}, "again": True}, tmp_path / "step11.ckpt")
    assert steps() == [11, 10]
    assert "again" in checkpoint.read_checkpoint(tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("runs", "taken"),
    [
        ({"a": ("interrupted", 9, "12:00"), "b": ("interrupted", 10, "11:00")}, "b"),
        ({"a": ("interrupted", 10, "11:00"), "b": ("interrupted", 10, "12:00")}, "b"),
        ({"a": ("finished", 10, "11:00"), "b": ("interrupted", 10, "12:00")}, "a"),
        ({"a": ("failed", None, "12:00")}, "new"),
    ],
    ids=["furthest", "last started of one step", "finished", "nothing to resume"],
)
def test_resume_auto_takes_the_run_that_came_furthest(make_result, tmp_path, runs, taken):
    for number, (name, (status, step, started)) in enumerate(runs.items()):
        folder = tmp_path / name / "checkpoints"
        folder.mkdir(parents=True)
        if step is not None:
            (folder / f"step{step}-{'0' * 16}.ckpt").touch()
        result = make_result(status=status, started=started, extra={"config_hash": "x"})
        result.write(path := tmp_path / name / "result.json")
        os.utime(path, (time.time() - 1000 * number,) * 2)  # the first is the newest file
    assert run_folder(str(tmp_path / "new"), "x", "auto") == str(tmp_path / taken)


def test_runs_started_within_one_second_have_folders_of_their_own(tmp_path):
    names = [run_folder(str(tmp_path / "runs" / "12-00-00")) for _ in range(3)]
    assert [Path(name).name for name in names] == ["12-00-00", "12-00-00_2", "12-00-00_3"]
    assert all(Path(name).is_dir() for name in names)


@pytest.mark.slow
def test_the_folder_of_another_run_is_refused(cli, signals):
    run = [*RUN, "logger=csv", "hydra.run.dir=run"]
    signals(signal.SIGTERM, 2)
    assert cli("train", *run).code == 143
    before = Path("run/result.json").read_text()
    for more, expected in ([], "resume=auto"), (["seed=1", "resume=auto"], "another configuration"):
        assert expected in cli("train", *run, *more).error()
    Path("run/result.json").write_text(before)
    holds = "import sys, pathlib, infvit.run.files as files; lock = files.FolderLock(pathlib.Path(sys.argv[1])); "
    holder = [sys.executable, "-c", holds + "print(1, flush=True); input()", Path("run").resolve()]
    with subprocess.Popen(holder, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"1\n"
        refused = cli("train", *run, "resume=auto")
        assert f"a run that is running (process {other.pid} on " in refused.error()
        other.communicate(b"\n")


@pytest.mark.slow
def test_a_stopped_sweep_skips_finished_jobs_and_resumes_within_the_next_one(cli, signals):
    signals(signal.SIGINT, 22 + 5)
    sweep = ["-m", *RUN, "logger=csv", "model=vit", "seed=0,1"]
    stopped = cli("train", *sweep)
    assert stopped.code == 130
    assert "the sweep's command, again\nthe sweep so far:\n" in stopped.out
    assert "Traceback" not in stopped.out + stopped.err
    assert [result(folder)["status"] for folder in stopped.runs()] == ["finished", "interrupted"]
    page = to_html(Comparison.from_dirs(["runs"]))
    assert " seed 1 interrupted: SIGINT after step 4 " in page
    assert "the sweep&#39;s command, again" in page
    resumed = cli("train", *sweep).ok()
    assert "skipped: vit seed 0 is finished" in resumed.out
    assert "resumes after step 4, " in resumed.out
    assert [result(folder)["status"] for folder in resumed.runs()] == ["finished", "finished"]


@pytest.mark.parametrize(
    ("words", "moment", "again"),
    [
        (["train", *RUN, "seed=3"], "train.build", "python train.py .*seed=3.* hydra.run.dir=runs/.* resume=auto"),
        (["train", "-m", *RUN, "seed=3,4"], "train.build", "python train.py -m .*seed=3,4"),
        (["eval", "ckpt=a.ckpt"], "infvit.cli.use_threads", "python eval.py ckpt=a.ckpt"),
    ],
    ids=["before a run", "in a sweep", "in a measurement"],
)
def test_ctrl_c_outside_of_training_is_one_line(cli, monkeypatch, words, moment, again):
    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(moment, lambda *_: signal.raise_signal(signal.SIGINT))
    stopped = cli(*words)
    assert stopped.code == 130
    assert "Traceback" not in stopped.out + stopped.err
    (line,) = [line for line in stopped.out.splitlines() if line.startswith("SIGINT: stopped")]
    assert re.search(f"resume with: {again}$", line)
    assert [result(folder)["status"] for folder in stopped.runs()] == ["interrupted"] * (words[0] == "train")
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("ignored", [False, True], ids=["a terminal", "nohup"])
def test_a_second_ctrl_c_ends_the_process_at_once(ignored, tmp_path, capfd):
    before = signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.default_int_handler)
    callback = PeriodicCheckpoint(str(tmp_path), every_minutes=10)
    callback._handle_signals()
    signal.raise_signal(signal.SIGINT)
    now = signal.signal(signal.SIGINT, before)
    assert (callback.signal, now) == ((None, signal.SIG_IGN) if ignored else (signal.SIGINT, signal.SIG_DFL))
    assert capfd.readouterr().err.count("another SIGINT ends it at once") == (not ignored)


class Malice:
    """Pickles a call that creates a file, as an attacker would."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("place", ["state_dict", "optimizer_states", "callbacks", "RunRecord"])
def test_nothing_in_a_malicious_checkpoint_is_executed(tmp_path, place):
    ran, path = tmp_path / "ran", tmp_path / "theirs.ckpt"
    torch.save({"state_dict": {}, place: Malice(ran)}, path)
    with pytest.raises(UsageError, match=f"{path} is not a complete checkpoint"):
        checkpoint.read_checkpoint(path)
    assert not ran.exists()
    torch.load(path, weights_only=False)  # which executes it
    assert ran.exists()


@pytest.mark.slow
def test_training_and_evaluation_refuse_a_malicious_checkpoint(cli, tmp_path):
    path = tmp_path / "theirs.ckpt"
    torch.save({"state_dict": {}, "callbacks": Malice(tmp_path / "ran")}, path)
    for arguments in (["train", *RUN, "logger=csv", f"resume={path}"], ["eval", f"ckpt={path}"]):
        assert str(path) in cli(*arguments).error()
    assert not (tmp_path / "ran").exists()


def test_the_csv_log_keeps_its_rows_until_a_resumed_run_cuts_them_to_its_checkpoint(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("epoch,step\n0,1\n0,2\n")
    log = ResumableCSVLogger(str(tmp_path))
    assert path.read_text() == "epoch,step\n0,1\n0,2\n"  # the process may be killed here
    log.keep_rows(1)
    assert path.read_text() == "epoch,step\n0,1\n"
    log.log_metrics({"epoch": 0}, step=2)
    assert log.rows() == 2
    assert path.read_text() == "epoch,step\n0,1\n0,2\n"
    log.log_metrics({"loss": torch.tensor(0.5)}, step=3)
    log.save()
    assert path.read_text() == "epoch,loss,step\n0,,1\n0,,2\n,0.5,3\n"
    log.keep_rows(0)
    assert not path.exists()
