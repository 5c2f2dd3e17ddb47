"""The journey of one's own attention, from an empty folder outside the repository to a converted model."""

import pytest
import timm
import torch
from omegaconf import OmegaConf

from infvit import VisionTransformer, convert
from infvit.attention import register
from infvit.check.__main__ import main
from infvit.cli.load_run import ConfigModelSource
from tests.conftest import result

QUICK = ["recipe.epochs=1", "recipe.warmup_epochs=0", "data/loader=torch", "logger=csv", "size.depth=2", "size.dim=16"]


@pytest.fixture
def mine(tmp_path, monkeypatch, capfd, own_names):  # noqa: ARG001
    """The folder of the template, on the path as its README says."""
    assert main(["--template", str(tmp_path / "mine")]) == 0
    assert capfd.readouterr().out == (tmp_path / "mine" / "README.md").read_text()
    monkeypatch.syspath_prepend(tmp_path / "mine")
    return tmp_path / "mine"


@pytest.mark.slow
def test_the_template_trains_sweeps_is_measured_saved_loaded_and_converted(cli, mine, tmp_path):
    ours = ["--config-dir", f"{mine}/conf"]
    outcome = cli("train", *ours, "-m", "experiment=mine", *QUICK, "model=vit,mine", "seed=0").ok()
    assert "✓ mine" in outcome.out
    runs = {result(folder)["model"]: folder for folder in outcome.runs()}
    row = result(runs["mine"])
    assert (row["status"], row["attention"]) == ("finished", "Mine")
    assert row["flops_forward"] > 0
    assert outcome.out.count("Mine, which has no weights of tokens") == 1
    assert not (runs["mine"] / "attention.png").exists()
    ckpt = runs["mine"] / "checkpoints" / "last.ckpt"
    both = f"ckpt=[{runs['vit'] / 'checkpoints' / 'last.ckpt'},{ckpt}]"
    assert "trust=[mine_attn] allows" in cli("eval", f"ckpt={ckpt}").error()
    trust = "trust=[mine_attn]"
    assert f"top-1 {100 * row['metrics']['test/top1']:.2f}%" in cli("eval", f"ckpt={ckpt}", trust).ok().out
    assert "mine: Mine has no weights of tokens" in cli("eval", "eval=gallery", both, trust, "images=2").ok().out
    measured = cli("eval", "eval=attention", both, trust, "images=2", "methods=[attention]").ok().out
    assert "mine seed 0: 2 images, no maps: its attention has no weights of tokens" in measured
    ways = ["resolution=16", "ways=[dense,chunked]"]
    shown = cli("eval", "eval=highres", f"ckpt={ckpt}", trust, *ways).ok().out
    assert "| dense | 16 × 16 |" in shown
    assert shown.count("its attention does not run chunked: left out") == 1
    line = cli("eval", "eval=highres", f"ckpt={ckpt}", trust, "resolution=16").error()
    assert "ways=[chunked] is for models such as linear_infvit alone: expected ways=[dense]" in line
    costs = ["eval=efficiency", "size=tiny", "models=[mine]", "resolutions=[8]", "passes=[forward]", "rounds=2"]
    assert "mine" in cli("eval", *ours, *costs).ok().out

    loaded = ConfigModelSource(OmegaConf.create({"data": {"module": {}}, "trust": ["mine_attn"]})).load(str(ckpt)).model
    register("mine", type(loaded.blocks[0].attn))
    loaded.save_pretrained(tmp_path / "saved")
    images = torch.rand(2, 3, 8, 8)
    assert torch.equal(VisionTransformer.from_pretrained(tmp_path / "saved").eval()(images), loaded(images))
    theirs = timm.create_model("test_vit")
    assert convert(theirs, "mine").converted == [f"blocks.{i}.attn" for i in range(6)]


@pytest.mark.slow
def test_an_installed_attention_needs_neither_config_nor_trust(cli, installed):
    (folder,) = cli("train", "experiment=digits", *QUICK, "model=mine").ok().runs()
    assert result(folder)["attention"] == "Mine"
    cli("eval", f"ckpt={folder / 'checkpoints' / 'last.ckpt'}").ok()
    assert "mine" in cli("train", "--help").out
    for name, taken in (("infsa", "infvit.attention.PureInfSA"), ("vit", "conf/model/vit.yaml")):
        installed(f"{name} = mine_attn:Mine")
        line = cli("train", "experiment=digits", *QUICK, "model=vit").error()
        assert f"attention '{name}', mine_attn.Mine, has the name of" in line
        assert taken in line


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Wide", "Wide returns (2, 17, 32), torch.float32 for tokens of (2, 17, 16), torch.float32: expected the same"),
        ("Mixing", "Mixing mixes the images of a batch: alone the first one's output differs by 0."),
        ("Missing", "tests.check.plain.Missing is not a class or function (ModuleNotFoundError: No module named"),
    ],
)
def test_an_attention_that_cannot_be_compared_is_refused_before_training(cli, name, words):
    target = f"model.attention._target_=tests.check.plain.{name}"
    assert words in cli("train", "experiment=digits", *QUICK, "model=vit", target).error()


@pytest.mark.slow
def test_flops_that_cannot_be_counted_are_a_dash(cli):
    target = "model.attention._target_=tests.check.plain.OnTheDevice"
    line = "FLOPs not counted: OnTheDevice fails on the meta device .RuntimeError: "
    with pytest.warns(UserWarning, match=line) as found:
        outcome = cli("train", "-m", "experiment=digits", *QUICK, "model=vit", "seed=0", target).ok()
    assert len([one for one in found if "FLOPs" in str(one.message)]) == 1
    assert "FLOPs not known" in outcome.out
    (folder,) = outcome.runs()
    assert result(folder)["flops_forward"] is None
    assert result(folder)["parameters"] > 0
