"""The facts on the classes of the operators, and how operators are found."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infvit import attention
from infvit.attention import ATTENTIONS, LinearInfSA, overview
from infvit.attention.signature import constructor_signature

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
