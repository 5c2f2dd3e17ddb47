"""A run leaves no secrets on disk, and the config of a stored run calls only what builds models and data."""

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from infvit.cli.targets import stored_config
from infvit.errors import UsageError
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


@pytest.mark.slow
@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "data.datasets.image_files.os.system"])
def test_a_command_that_calls_the_standard_library_is_refused(cli, tmp_path, target):
    line = cli("train", *RUN, "logger=csv", f"recipe.mixup={{_target_: {target}, _args_: [touch ran]}}").error()
    assert f"recipe.mixup._target_={target}" in line
    assert not (tmp_path / "ran").exists()


@pytest.fixture
def refusal(monkeypatch, tmp_path):
    """`refusal("x: 1")`: the line that refuses a stored run with this config, "" if none does."""
    (tmp_path / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch(); f = print")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(text: str, trust: str | list[str] = ()) -> str:
        Path("config.yaml").write_text(text)
        try:
            stored_config(Path("config.yaml"), trust)
        except UsageError as error:
            return str(error)
        finally:
            assert not (tmp_path / "ran").exists()
        return ""

    return run


@pytest.mark.parametrize(
    "malice",
    [
        "{_target_: evil.f}",
        "{_target_: runs.gift.evil.f}",
        "{_target_: infvit.run.files.atomic_write, path: ran, content: theirs}",
        "{_target_: lightning.pytorch.loggers.CSVLogger, save_dir: ran}",
        "{_target_: data.beton.loader.evil.f}",
        "{_target_: torch.nn.modules.Linear}",
        "{_target_: [evil.f]}",
        "{x: !!python/object/apply:os.system [touch ran]}",
        "{x: !!python/object/apply:pathlib.PosixPath [ran]}",
        "!mine {x: 1}",
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
def test_the_config_of_a_stored_run_calls_only_trusted_targets(refusal, malice):
    line = refusal(f"x: evil.f\nmodel:\n  net: {malice}\n")
    for words in ("config.yaml", "model.net", "may not call"):
        assert words in line
    assert "callbacks.a" in refusal(f"callbacks.a: {malice}")  # a key with a dot is not in the section callbacks


def test_evaluation_does_not_import_what_is_beside_a_run(cli, tmp_path):
    gift = tmp_path / "runs" / "gift"
    (gift / ".hydra").mkdir(parents=True)
    (gift / "evil.py").write_text(f"import pathlib; pathlib.Path({str(tmp_path / 'ran')!r}).touch(); f = print")
    (gift / ".hydra" / "config.yaml").write_text("model: {attention: {_target_: runs.gift.evil.f}}")
    (gift / "last.ckpt").write_bytes(b"")
    line = cli("eval", "ckpt=runs/gift/last.ckpt").error()
    assert "model.attention._target_=runs.gift.evil.f, which the config of a run may not call" in line
    assert "trust=[runs] allows" in line
    assert not (tmp_path / "ran").exists()
    assert "not a complete checkpoint" in cli("eval", "ckpt=runs/gift/last.ckpt", "trust=[runs]").error()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {net: [", "cannot be read"),
        ("x: &a [*a]", "cannot be read"),
        ("- 1", "holds no config"),
        ("model: {net: {_target_: mine.F}}", "trust=[mine] allows"),
        ("callbacks: {mine: {_target_: mine.F}}", ""),
    ],
    ids=["not YAML", "endless", "a list", "one's own class", "one's own callback, which is not made"],
)
def test_a_config_that_cannot_be_used_is_refused(refusal, text, expected):
    line = refusal(text)
    assert expected in line
    assert bool(expected) == bool(line)


@pytest.mark.parametrize(("variable", "trust"), [("mine", ()), ("other,mine", []), ("", ["mine"]), ("", "mine")])
def test_trusted_packages_may_be_called(refusal, monkeypatch, variable, trust):
    monkeypatch.setenv("INFVIT_TRUST", variable)
    assert not refusal("model: {net: {_target_: mine.F}}", trust)
    assert "may not call" in refusal("model: {net: {_target_: mine_too.F}}", trust)


@pytest.mark.parametrize("experiment", ["digits", "mnist5k", "equal_depth", "ablation_positions"])
def test_every_config_of_this_repository_is_trusted(tmp_path, experiment):
    OmegaConf.save(composed(f"experiment={experiment}", "recipe=deit"), tmp_path / "config.yaml")
    assert stored_config(tmp_path / "config.yaml").model.net
