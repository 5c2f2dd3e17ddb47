"""Each mistake gives one line that names the thing, what was found and what is possible; exit code 2, no traceback."""

import io
import sys

import pytest
import torch
from PIL import Image

from data.prepare import __main__ as prepare
from infvit.compare import __main__ as compare

SHORT = ["recipe.epochs=1", "recipe.warmup_epochs=0"]
DIGITS = ["experiment=digits", "logger=csv", "data/loader=torch", *SHORT]
SMALL = [*DIGITS, "size.depth=1", "size.dim=16"]
MIXUP = "recipe.mixup={{_target_: timm.data.Mixup, _partial_: true, {}}}"


@pytest.fixture
def tree(tmp_path):
    """Real images in the layout of `data=imagefolder`: 2 classes, 8 for training and 4 for validation in each."""
    root = tmp_path / "images"
    for split, count in (("train", 8), ("val", 4)):
        for color, name in ((40, "dark"), (200, "light")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (20 + i, 16), (color + i, color, color)).save(folder / f"{i}.jpg")
    return root


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["model=nothing"], ["model=nothing", "linear_infvit", "vit"]),
        (["recipe=nothing"], ["recipe=nothing", "deit", "digits"]),
        (["experiment=nothing"], ["experiment=nothing", "digits"]),
        (["size.heads=5"], ["num_heads=5", "dim=64", "4"]),
        (["size.image_size=9"], ["9", "patch size 2", "8 or 10"]),
        (["data.num_classes=7"], ["data.num_classes is not a config key"]),
        (["recipe.batch_size=5000"], ["5000", "1437"]),
        (["recipe.batch_size=33", "trainer=ddp_cpu"], ["33", "2 devices × 1 accumulated", "multiple of 2"]),
        (["recipe.batch_size=33", "trainer.accumulate_grad_batches=2"], ["33", "2 accumulated", "multiple of 2"]),
        (
            ["recipe.batch_size=33", "recipe.mixup={_target_: timm.data.Mixup, _partial_: true}"],
            ["33", "multiple of 2"],
        ),
        (["recipe.warmup_epochs=1"], ["warmup_epochs=1 of epochs=1", "warmup_epochs=0"]),
        (["trainer.max_epochs=2"], ["trainer.max_epochs=2", "expected 1 or fewer", "recipe.epochs=2"]),
        (["+trainer.limit_train_batches=0"], ["limit_train_batches=0", "from 1"]),
        (["+progressive=from160"], ["begin=0.74 end=0.86", "the last of 1 epochs"]),
        (
            [
                "+progressive=from160",
                "recipe.augmentation.progressive.begin=0",
                "recipe.augmentation.progressive.end=0",
            ],
            ["recipe.augmentation.progressive.start=160", "size.image_size=8"],
        ),
        (["recipe.batch_sizes=5"], ["batch_sizes"]),
        (["trainer.devices=8"], ["trainer.devices=8", "found 0"]),
        (["trainer.accelerator=gpu"], ["GPU", "found 0"]),
        (["resume=nowhere.ckpt"], ["nowhere.ckpt", "does not exist"]),
        (["model.attention.gamma=1.5", "+x=1"], ["gamma"]),
        (["model=linear_infvit", "+model.attention.gamma=1.5"], ["gamma=1.5", "above 0 and below 1"]),
        (["seed="], ["seed"]),
        (["sead=1"], ["sead is not a config key: did you mean seed?"]),
        (["trainer.limit_val=1"], ["trainer.limit_val is not a config key", "(+trainer.limit_val=1 adds it)"]),
        (["+trainer.gradient_clip_algorithm=value", "recipe.clip_grad=null"], ["clip_algorithm", "recipe.clip_grad"]),
        ([MIXUP.format("prob: 0.0, label_smoothing: 0.0")], ["recipe.mixup.prob=0", "recipe.mixup=null"]),
        ([MIXUP.format("label_smoothing: 0.1")], ["smoothed twice"]),
        (["seed=1,2"], ["Ambiguous value for argument 'seed=1,2'", "key=[value1,value2]", "add --multirun"]),
        (["+model=vit"], ["model is chosen already: write model=OPTION without +"]),
        (["gamma=fixed"], ["Could not override 'gamma'. No match in the defaults list", "use +gamma=fixed"]),
        (["+seed=1"], ["An item is already at 'seed'", "Either remove + prefix: 'seed=1'"]),
        (["~nothing"], ["'nothing' does not exist"]),
        (["seed='1"], ["seed='1 cannot be read: write NAME=VALUE"]),
        (["--seed=1"], ["--seed=1 is not an option: overrides have no dashes"]),
        (["recipe.base_lr=???"], ["recipe.base_lr has no value: give recipe.base_lr=VALUE"]),
        (["size.depth=${nothing}"], ["'nothing' not found"]),
        (["size.depth=1.5"], ["size.depth=1.5", "expects a valid integer"]),
        (["recipe.model.drop_path=nan"], ["recipe.model.drop_path=nan is not a number"]),
        (["seed=-1"], ["seed=-1", "a whole number from 0"]),
        (["threads=0"], ["threads=0", "a number of CPU threads"]),
        (["size.depth=[[nan]]"], ["size.depth=[[NaN]]", "expects a valid integer"]),
        (["size.depth={_target_:int}"], ["model.net.depth._target_=int", "named 'int'", "the full name"]),
        (["size.depth=-inf"], ["size.depth=-Infinity", "expects a valid integer"]),
        (["size.depth='\x1b[31mred'"], ["size.depth"]),
        ([f"size.depth={'x' * 5000}"], ["size.depth"]),
        (["size.depth=${"], ["size.depth"]),
        (["size.depth=${oc.env:NOPE}"], ["NOPE"]),
        (["size.depth=${no_such_resolver:1}"], ["no_such_resolver"]),
        (["recipe.schedule._target_=infvit.nothing"], ["infvit.nothing"]),
        (["~size.depth"], ["depth"]),
        (["size.Depth=1"], ["size.Depth"]),
        (["size.depth.x=1"], ["size.depth"]),
    ],
)
def test_one_line(cli, arguments, expected):
    if any("devices" in a or "gpu" in a for a in arguments) and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    outcome = cli("train", *DIGITS, *arguments)
    line = outcome.error()
    for words in expected:
        assert words in line
    assert line.isprintable()
    assert len(line) < 1000


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("recipe.epochs=2", "warmup_epochs=5 of epochs=2"),
        ("recipe.label_smoothing=2", "label_smoothing=2"),
        ("recipe.batch_size=0", "batch_size=0"),
        ("recipe.augmentation.crop_scale=[2,3]", "crop_scale"),
        ("recipe.augmentation.erasing.probability=2", "probability is 2"),
        ("+recipe.mixup.cutmix_minmax=[1]", "recipe.mixup cannot mix"),
    ],
)
def test_a_recipe_is_refused_before_images_are_read(cli, override, expected):
    assert expected in cli("train", "data=imagefolder", "data.root=absent", override).error()


def in_ascii(monkeypatch) -> io.BytesIO:
    """Makes this process's stdout a terminal that knows ASCII alone; returns what is printed."""
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii", write_through=True))
    return written


@pytest.mark.parametrize(
    "command",
    [
        lambda cli: cli("train", "seed=-1"),
        lambda cli: cli("eval", "nothing=1"),
        lambda _: compare.main(["absent"]),
        lambda _: prepare.main(["imagefolder", "--source", "absent", "--out", "out"]),
    ],
    ids=["train", "eval", "compare", "prepare"],
)
def test_an_ascii_terminal_shows_every_sign(cli, monkeypatch, command):
    written = in_ascii(monkeypatch)
    command(cli)
    print("3 × 4 ± 1 ✓ … é \udcff", file=sys.stdout)
    assert b"3 x 4 +- 1 v ... \\xe9 \\udcff" in written.getvalue()


@pytest.mark.parametrize("arguments", [[], ["data=imagenet", "+dry_run=true"]])
def test_without_imagenet_the_paper_run_says_where_it_looked_and_what_else_there_is(
    cli, monkeypatch, tmp_path, arguments
):
    monkeypatch.setenv("IMAGENET_DIR", str(tmp_path / "not_here"))
    line = cli("train", *arguments).error()
    for words in (str(tmp_path / "not_here"), "train/", "data.root=", "experiment=digits"):
        assert words in line


def test_full_error_shows_the_traceback(cli, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    outcome = cli("train", *DIGITS, "size.heads=5")
    assert outcome.code == 2
    assert "Traceback" in outcome.err


OWN = ["data=imagefolder", "size=tiny", "recipe=digits", "recipe.batch_size=8", *SHORT, "logger=csv"]


@pytest.mark.slow
def test_own_images_train_in_one_line_and_a_corrupt_one_is_named(cli, tree):
    mine = [*OWN, f"data.root={tree}", "data/loader=torch"]
    assert cli("train", *mine).code == 0
    bad = tree / "train" / "dark" / "3.jpg"
    bad.write_bytes(bad.read_bytes()[:200])
    line = cli("train", *mine).error()
    assert str(bad) in line
    assert "skip_bad" in line
    assert cli("train", *mine, "data.skip_bad=true").code == 0


@pytest.mark.slow
def test_empty_and_missing_folders(cli, tree):
    line = cli("train", *OWN, f"data.root={tree / 'nothing'}", "data/loader=torch").error()
    assert str(tree / "nothing") in line
    for image in (tree / "val" / "dark").iterdir():
        image.unlink()
    line = cli("train", *OWN, f"data.root={tree}", "data/loader=torch").error()
    assert "dark" in line


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_or_seed_is_refused_and_one_without_its_run_is_taken(cli, tmp_path):
    assert cli("train", *SMALL, "model=vit", "hydra.run.dir=first").code == 0
    path = tmp_path / "first" / "checkpoints" / "last.ckpt"
    for change, found in (("recipe.base_lr=1e-3", "recipe digits#"), ("seed=1", "seed 0: expected seed 1")):
        line = cli("train", *SMALL, "model=vit", change, f"resume={path}", "hydra.run.dir=other").error()
        for words in (f"{path} is of a run with {found}", "size.dim=16 model=vit), or", "leave out resume="):
            assert words in line
    alone = path.resolve().rename(tmp_path / "alone.ckpt")
    assert cli("train", *SMALL, "model=vit", "seed=1", f"resume={alone}", "hydra.run.dir=second").code == 0


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_a_checkpoint_that_is_none_or_of_another_model(cli, tmp_path, content):
    path = tmp_path / "other.ckpt"
    if content is None:
        assert cli("train", *SMALL, "model=vit").code == 0
        path = next(tmp_path.glob("runs/**/last.ckpt"))
    else:
        path.write_bytes(content)
    line = cli("train", *SMALL, f"resume={path}", "model=linear_infvit").error()
    assert str(path) in line
    assert (
        ("another model" in line and "gamma_logit" in line) if content is None else "not a complete checkpoint" in line
    )
