"""A run leaves no secrets on disk, and the config of a stored run calls only what builds models and data."""

from pathlib import Path

import pytest

from infvit.cli.targets import check_stored_targets
from tests.cli.test_conf import composed

SMALL = ["experiment=digits", "data/loader=torch", "size.depth=1", "size.dim=16"]
RUN = [*SMALL, "recipe.warmup_epochs=0", "recipe.epochs=1"]
KEY = "0123456789abcdef" * 2 + "planted0"


def files_with(folder: Path, text: str) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and text.encode() in path.read_bytes()]


@pytest.mark.slow
def test_the_users_key_is_in_no_file_of_a_sweep(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("WANDB_MODE", "offline")
    done = cli("train", "-m", *RUN, "model=vit", "seed=0", "name=swept").ok()
    assert list(tmp_path.rglob("*.wandb"))
    assert list(tmp_path.rglob("comparison.html"))
    assert files_with(tmp_path, "swept")
    assert not files_with(tmp_path, KEY)
    assert KEY not in done.out + done.err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "place"),
    [
        (f"+logger.wandb.settings.api_key={KEY}", "logger.wandb.settings.api_key"),
        (f"+data.password={KEY}", "data.password"),
        (f"name=of_{KEY}", "name"),
        ("name=${oc.env:WANDB_API_KEY}", "name"),
    ],
)
@pytest.mark.parametrize("sweep", [[], ["-m"]])
def test_a_secret_in_the_config_is_refused_before_anything_is_written(
    cli, monkeypatch, tmp_path, override, place, sweep
):
    if place == "name":
        monkeypatch.setenv("WANDB_API_KEY", KEY)
    outcome = cli("train", *sweep, *RUN, override)
    assert place in outcome.error()
    assert KEY not in outcome.out + outcome.err
    assert not files_with(tmp_path, KEY)


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "data.datasets.image_files.os.system"])
def test_a_command_that_calls_the_standard_library_is_refused(cli, tmp_path, target):
    line = cli("train", *RUN, "logger=csv", f"recipe.mixup={{_target_: {target}, _args_: [touch ran]}}").error()
    assert f"recipe.mixup._target_={target}" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "malice",
    [
        "{_target_: os.system, command: touch ran}",
        "{_target_: data.datasets.image_files.os.system, command: touch ran}",
        "{_target_: torch.load, f: theirs, weights_only: false}",
        "{_target_: infvit.module.torch.load, f: theirs, weights_only: false}",
        "{_target_: torch.nn.modules.module.torch.load, f: theirs, weights_only: false}",
        "{_target_: lightning.pytorch.loggers.csv_logs.os.system, command: touch ran}",
        "{_target_: infvit.module.Classifier.load_from_checkpoint, checkpoint_path: theirs}",
        "{_target_: '${x}'}",
        "\"${oc.decode:'{_target_: os.system}'}\"",
    ],
)
def test_the_config_of_a_stored_run_calls_only_trusted_targets(cli, tmp_path, malice):
    run = tmp_path / "theirs"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "config.yaml").write_text(f"x: os.system\nmodel:\n  net: {malice}\n")
    (run / "last.ckpt").write_bytes(b"")
    line = cli("eval", f"ckpt={run / 'last.ckpt'}").error()
    for words in (str(run / ".hydra" / "config.yaml"), "model.net", "may not call"):
        assert words in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("experiment", ["digits", "mnist5k", "equal_depth", "ablation_positions"])
def test_every_config_of_this_repository_is_trusted(experiment):
    check_stored_targets(composed(f"experiment={experiment}", "recipe=deit"), Path("config.yaml"))
