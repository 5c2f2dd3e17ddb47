"""The facts on the classes of the operators, how operators are found, and names for those of others."""

import functools
import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from infvit import VisionTransformer, attention, convert
from infvit.attention import ATTENTIONS, LinearInfSA, NoAttention, SoftmaxAttention, find, overview, register
from infvit.attention.signature import constructor_signature
from infvit.errors import UsageError
from tests.check.plain import SMALL, Plain

PACKAGE = Path(attention.__file__).parent


def test_the_classes_make_the_table_of_operators():
    """The page, `overview()` and the configs cannot disagree with the classes, and no operator is left out."""
    table, page = overview(), (PACKAGE / "README.md").read_text()
    assert max(map(len, table.splitlines())) <= 80
    for name, operator in ATTENTIONS.items():
        facts = (operator.paper, operator.time, operator.memory, operator.state)
        assert f"| `{name}` | {operator.__name__} | {' | '.join(facts)} |" in page
        assert re.search(rf"^{name} .*{re.escape(operator.time)}", table, re.MULTILINE)


@pytest.mark.slow
def test_a_new_operator_is_one_file(tmp_path):
    """A module in the package is found without being named anywhere."""
    copy = tmp_path / "infvit" / "attention"
    shutil.copytree(PACKAGE.parent, copy.parent)
    (copy / "identity.py").write_text(
        "from infvit.attention.none import NoAttention\n\n\nclass Identity(NoAttention):\n    name = 'identity'\n"
    )
    code = "from infvit import attention; print(attention.ATTENTIONS['identity'], attention.Identity)"
    found = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert found.stdout.count("infvit.attention.identity.Identity") == 2


def test_options_of_the_base_are_in_the_signature_of_every_operator():
    for operator in ATTENTIONS.values():
        options = constructor_signature(operator).parameters
        assert {"dim", "num_heads", "qkv_bias", "attn_drop", "proj_drop"} <= options.keys()
    assert {"gamma", "learn_gamma", "gamma_per_head", "chunk"} <= constructor_signature(LinearInfSA).parameters.keys()
    with pytest.raises(TypeError, match="misspelt"):
        constructor_signature(LinearInfSA).bind(8, misspelt=1)


@pytest.mark.usefixtures("own_names")
def test_a_registered_class_is_known_to_convert_saving_and_timm(tmp_path):
    unnamed = VisionTransformer(functools.partial(Plain, scale=2.0), **SMALL).eval()
    with pytest.raises(UsageError, match=r"attention=tests\.check\.plain\.Plain has no name .*register"):
        unnamed.save_pretrained(tmp_path)
    assert register("plain")(Plain) is find("plain") is Plain
    assert "plain" in overview()
    unnamed.save_pretrained(tmp_path)
    loaded = VisionTransformer.from_pretrained(tmp_path)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(loaded(images), unnamed(images))
    assert loaded.blocks[0].attn.scale == 2
    model = timm.create_model("vit_4l_patch16_224", attention="plain", img_size=32, dim=32, num_heads=2, depth=1)
    assert type(model.blocks[0].attn) is Plain
    assert convert(timm.create_model("test_vit"), "plain", copy_weights=False).attention == "plain"


@pytest.mark.usefixtures("own_names")
def test_a_name_belongs_to_one_class():
    for name, other in (("softmax", Plain), ("none", SoftmaxAttention)):
        with pytest.raises(
            UsageError, match=rf"attention '{name}' is infvit\..*: give .*{other.__name__} another name"
        ):
            register(name, other)
    with pytest.raises(UsageError, match="attention 'infsa' is infvit"):
        type("Mine", (NoAttention,), {"name": "infsa"})
    with pytest.raises(UsageError, match="attention 'mine' is 3: expected a subclass"):
        register("mine", 3)
    assert "mine" not in ATTENTIONS


def test_an_installed_package_names_its_attentions(installed, tmp_path):
    assert "mine_attn" not in sys.modules
    made = find("mine")
    assert (made.__module__, ATTENTIONS["mine"]) == ("mine_attn", made)
    VisionTransformer(made, **SMALL).save_pretrained(tmp_path / "saved")
    installed("mine = mine_attn:Mine\nbroken = mine_attn.nothing:Mine\n")
    assert type(VisionTransformer.from_pretrained(tmp_path / "saved").blocks[0].attn) is made
    with pytest.raises(UsageError, match=r"attention='other' is not one of agent, broken, .*mine"):
        find("other")
    with pytest.raises(
        UsageError, match=r"mine_attn\.nothing:Mine of mine-attn, .*No module named 'mine_attn.nothing'"
    ):
        find("broken")


@pytest.mark.usefixtures("installed")
def test_a_class_is_saved_under_the_name_of_its_packages_entry_point(tmp_path):
    """As a run's model, whose config names the class."""
    importlib.import_module("mine_attn")
    VisionTransformer(sys.modules["mine_attn"].Mine, **SMALL).save_pretrained(tmp_path / "saved")
    assert '"name": "mine"' in (tmp_path / "saved" / "config.json").read_text()
