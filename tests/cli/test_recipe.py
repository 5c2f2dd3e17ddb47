"""Every key of a recipe has a reader, and a key that nothing reads is refused by name."""

import inspect
from typing import Any

import pytest
from omegaconf import OmegaConf
from torch import nn

from infvit.attention import PerformerAttention
from infvit.cli.recipe import check_recipe, optimization
from infvit.cli.validation import check_config
from infvit.errors import UsageError
from infvit.module import Classifier
from tests.cli.test_conf import composed, options

READERS = ("data.module", "model.net", "trainer", "callbacks.ema", "name")
"""`name` stands for the fields of a result and the tags of a logger that have the recipe's name."""


def leaves(node: Any, place: str = "") -> dict[str, Any]:
    if not isinstance(node, dict):
        return {place: node}
    parts = [leaves(value, f"{place}.{name}".lstrip(".")) for name, value in node.items() if name != "_partial_"]
    return {key: value for part in parts for key, value in part.items()}


def built(cfg) -> list[Any]:
    """What is instantiated from a config, resolved: its objects and the arguments of the Classifier."""
    cfg.trainer.default_root_dir, cfg.name = ".", cfg.recipe.name
    recipe = OmegaConf.to_container(cfg.recipe, resolve=True)
    arguments = {name: recipe[name] for name in inspect.signature(Classifier).parameters if name in recipe}
    objects = (OmegaConf.select(cfg, name) for name in READERS)
    return [arguments, *(OmegaConf.to_container(o, resolve=True) if OmegaConf.is_config(o) else o for o in objects)]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", options("recipe"))
def test_changing_any_key_of_a_recipe_changes_what_is_built(recipe):
    cfg = composed(f"recipe={recipe}")
    check_recipe(cfg, [])
    before = built(cfg)
    for key, value in leaves(OmegaConf.to_container(cfg.recipe)).items():
        changed = cfg.copy()
        OmegaConf.update(changed, f"recipe.{key}", other(value))
        assert built(changed) != before, key


def other(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return "another"
    return [*value, 1] if isinstance(value, list) else not value if isinstance(value, bool) else value + 1


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+recipe.decay=1", r"nothing reads recipe.decay: expected .*base_lr.*; leave out decay"),
        ("+recipe.drop_path=0.1", "nothing reads recipe.drop_path"),
        ("+recipe.model.depth=3", r"recipe.model.depth: expected class_token, drop_path, learn_positions, positions"),
        ("+recipe.augmentation.mixup=1", r"recipe.augmentation.mixup: expected augment, crop_ratio"),
        ("+recipe.other.key=1", "nothing reads recipe.other.key"),
        ("+recipe.schedule.gamma=1", "recipe.schedule.gamma"),
        ("+recipe.mixup.gamma=1", "recipe.mixup.gamma"),
        ("+recipe.augmentation.augment.gamma=1", "recipe.augmentation.augment.gamma"),
    ],
)
def test_a_key_that_nothing_reads_is_refused_by_name(override, says):
    def check(cfg):
        check_recipe(cfg, [override])
        check_config(cfg, "data.module", "recipe")

    with pytest.raises(UsageError, match=says):
        check(composed(override))


def test_an_optimizers_unknown_key_is_refused_when_it_is_made():
    net = nn.Linear(1, 1)
    make = optimization(composed("+recipe.optimizer.gamma=1").recipe, net)["optimizer"]
    with pytest.raises(TypeError, match="gamma"):
        make(net, lr=0.1)


def test_an_average_of_directions_that_performer_drew_is_refused():
    net, ema = nn.Sequential(PerformerAttention(16, 2)), "lightning.pytorch.callbacks.EMAWeightAveraging"
    assert optimization(composed(f"recipe.ema={{_target_: {ema}, use_buffers: false}}").recipe, net)
    with pytest.raises(UsageError, match=r"those of PerformerAttention.*use_buffers: false"):
        optimization(composed(f"recipe.ema={{_target_: {ema}}}").recipe, net)


@pytest.mark.parametrize("override", ["recipe.model.class_token=false", "positions=std0.02"])
def test_a_whole_model_of_timm_refuses_what_it_does_not_read(override):
    added = override if override.startswith("recipe") else f"+{override}"
    with pytest.raises(UsageError, match=r"model=deit_tiny_patch16_224 does not read recipe.model.(class_token|pos)"):
        check_recipe(composed("model=timm", added), [override])
    check_recipe(composed("model=timm", "recipe.model.drop_path=0.3"), ["recipe.model.drop_path=0.3"])
    check_recipe(composed("model=vit", added), [override])
