"""Random choices and random mistakes end in objects or in one line; fixed mistakes are in test_bad_input."""

import random

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

import train as train_script
from infvit.cli import check_batch
from tests.cli.test_conf import composed, options

BASE = ("experiment=digits", "logger=csv", "data/loader=torch", "dry_run=true", "trainer.accelerator=cpu")
GROUPS = ("model", "size", "recipe", "trainer", "+gamma", "+positions", "+progressive", "+scale")

VALUES = ["-1", "0", "1.5", "nan", "-inf", "1e400", "9" * 23, "0x10", "abc", "true", "???", "null", "''", "' '", "[]"]
VALUES += [
    "[1,2]",
    "{}",
    "{a:1}",
    "[[nan]]",
    "{_target_:int}",
    "ä" * 20,
    "x" * 5000,
    "'\x1b[31mred'",
    "1,2",
    "range(3)",
]
VALUES += ["${nothing}", "${oc.env:NOPE}", "${no_such_resolver:1}", "${model.nothing}", "${", "${tokens:a,b,c}"]
VALUES += ["os.system", "infvit.nothing", "infvit.__doc__"]


def leaves(node: object, key: str = "") -> list[str]:
    """Returns the full keys of all values of a config."""
    if not isinstance(node, dict) or not node:
        return [key]
    return [leaf for name, value in node.items() for leaf in leaves(value, f"{key}.{name}" if key else str(name))]


def mistake(draw: random.Random, keys: list[str]) -> str:
    """Returns an override with another value, another prefix, or a misspelt key."""
    key, value = draw.choice(keys), draw.choice(VALUES)
    at = draw.randrange(len(key))
    misspelt = draw.choice([key[:at] + key[at + 1 :], key[:at] + key[at:].swapcase(), key + "_", key + ".x"])
    prefixed = draw.choice(["+", "++", "~", "~~", "-"]) + key
    return f"{draw.choice([key, key, key, misspelt, prefixed])}={value}"


@pytest.fixture
def built_alone(monkeypatch):
    """Ends a dry run once its objects are made, the model without memory."""
    build = train_script.build

    def without_memory(cfg):
        with torch.device("meta"):
            return build(cfg)

    def check(cfg, data, module, _):
        check_batch(instantiate(cfg.trainer, callbacks=[], logger=False), module, data)

    monkeypatch.setattr(train_script, "build", without_memory)
    monkeypatch.setattr("infvit.cli.estimate_run", check)


@pytest.mark.slow
@pytest.mark.usefixtures("built_alone")
def test_random_choices_and_mistakes_are_accepted_or_one_line_and_exit_code_2(cli):
    draw = random.Random(0)
    keys = [key for key in leaves(OmegaConf.to_container(composed(*BASE), resolve=False)) if key != "dry_run"]
    commands = [[mistake(draw, keys)] for _ in range(40)]
    commands += [
        [f"{group}={draw.choice(options(group.lstrip('+')))}" for group in draw.sample(GROUPS, 4)] for _ in range(8)
    ]
    refused = 0
    for overrides in commands:
        outcome = cli("train", *BASE, *overrides)
        if outcome.code != 0:
            refused += 1
            lines = [line for line in outcome.err.split("\n") if line.startswith("error: ")]
            assert outcome.code == 2, (overrides, outcome.err)
            assert "Traceback" not in outcome.err, overrides
            assert len(lines) == 1, (overrides, outcome.err)
            assert lines[0].isprintable(), overrides
            assert len(lines[0]) < 1000, overrides
        assert not outcome.runs(), overrides
    assert refused > 20
