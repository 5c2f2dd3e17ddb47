"""The identity of code: what computes a result counts, wherever it is defined; comments and docstrings do not."""

import importlib
import sys

import pytest

from infvit.run import code
from infvit.run.code import code_hash
from infvit.run.environment import git_changes

OPERATOR = """'Mine.'
import torch
from . import helper
from own.table import *

class Mine:
    x = helper.one()
"""
HELPER = """
def one():
    # later
    from spaces.deep import two
    return two
"""
FILES = {
    "own/__init__.py": "from own.operator import Mine as Mine\nfrom own.other import Other\n",
    "own/operator.py": OPERATOR,
    "own/other.py": "class Other:\n    pass\n",
    "own/helper.py": HELPER,
    "own/table.py": "TABLE = []\n",
    "spaces/deep.py": "two = 2\n",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A package of one's own, and another one without an `__init__.py`; forgets what was read of them."""
    monkeypatch.syspath_prepend(tmp_path)
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)

    def hashed(name: str = "own.Mine") -> str:
        code._own.cache_clear()
        code._definition.cache_clear()
        importlib.invalidate_caches()
        return code_hash([name, "torch.nn.Linear", "nothing.there"])

    yield tmp_path, hashed
    for name in [name for name in sys.modules if name.partition(".")[0] in ("own", "spaces")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("file", "before", "after", "changes"),
    [
        ("own/operator.py", "one()", "0 * one()", True),
        ("own/operator.py", "class Mine", "def more(): pass\n\nclass Mine", True),
        ("own/helper.py", "return two", "return 0", True),
        ("own/table.py", "[]", "[1]", True),
        ("spaces/deep.py", "2", "3", True),
        ("own/operator.py", "Mine.", "Another text.", False),
        ("own/operator.py", "    x", "    '''A text.'''\n\n    x", False),
        ("own/helper.py", "# later", "# a comment\n", False),
        ("own/other.py", "pass", "y = 1", False),
        ("own/__init__.py", "Other\n", "Other\nz = 1\n", False),
    ],
)
def test_code_counts_if_the_object_depends_on_it(project, file, before, after, changes):
    folder, hashed = project
    first = {name: hashed(name) for name in ("own.Mine", "own.operator.Mine")}
    assert len(set(first.values())) == 1
    text = (folder / file).read_text()
    assert before in text
    (folder / file).write_text(text.replace(before, after))
    assert (hashed() != first["own.Mine"]) == changes


@pytest.mark.parametrize(
    ("module", "changed"),
    [
        ("infvit.attention.linear", {"LinearInfSA"}),
        ("infvit.attention.softmax", {"SoftmaxAttention"}),
        ("infvit.attention.layer", {"LinearInfSA", "SoftmaxAttention", "VisionTransformer"}),
        ("infvit.hub", {"VisionTransformer"}),
        ("infvit.attention", set()),
    ],
)
def test_an_edit_of_one_operator_leaves_the_others(monkeypatch, module, changed):
    def hashes():
        names = ("infvit.attention.LinearInfSA", "infvit.attention.SoftmaxAttention", "infvit.vit.VisionTransformer")
        return {name.rpartition(".")[2]: code_hash([name]) for name in names}

    before, own = hashes(), code._own
    monkeypatch.setattr(
        code, "_own", lambda name: (found := own(name)) and (found[0], name == module or found[1], found[2])
    )
    assert {name for name, value in hashes().items() if value != before[name]} == changed


def test_the_changes_are_kept_up_to_a_size(monkeypatch):
    output = {"diff": b"+" * 50, "ls-files": b"new.py\n"}
    monkeypatch.setattr("infvit.run.environment._git", lambda name, *_: output[name])
    assert git_changes(50) == b"+" * 50 + b"# untracked: new.py\n"
    assert git_changes(9).startswith(b"+" * 9 + b"\n# cut after 9 of 50 bytes")
