"""Every key of a recipe has a reader, and a key that nothing reads is refused by name."""

import inspect
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from torch import nn

from infvit.attention import PerformerAttention
from infvit.cli import resolvers
from infvit.cli.devices import READ_BY_CODE
from infvit.cli.recipe import check_read, optimization
from infvit.cli.validation import check_config
from infvit.errors import UsageError
from infvit.module import Classifier
from tests.cli.test_conf import CONF, composed, options
from train import PARTS

READERS = ("data.module", "model.net", "trainer", "callbacks.ema", "name")
"""`name` stands for the fields of a result and the tags of a logger that have the recipe's name."""


def check(*overrides: str) -> None:
    """Checks the config of a command as train.py does."""
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides], return_hydra_config=True)
        check_read(cfg, cfg.hydra, *READ_BY_CODE, *(part for part in PARTS if part != "recipe"))


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
    check(f"recipe={recipe}")
    cfg = composed(f"recipe={recipe}")
    before = built(cfg)
    for key, value in leaves(OmegaConf.to_container(cfg.recipe)).items():
        changed = cfg.copy()
        OmegaConf.update(changed, f"recipe.{key}", other(value))
        assert built(changed) != before, key


def other(value: Any) -> Any:
    if value is None or isinstance(value, str):
        return "another"
    return [*value, 1] if isinstance(value, list) else not value if isinstance(value, bool) else value + 1


TIMM = "model=timm"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["+recipe.decay=1"], r"nothing reads recipe.decay: expected .*base_lr.*; leave out decay"),
        (["+recipe.drop_path=0.1"], "nothing reads recipe.drop_path"),
        (["+recipe.model.depth=3"], r"recipe.model.depth: expected class_token, drop_path, learn_positions, positions"),
        (["+recipe.augmentation.mixup=1"], r"recipe.augmentation.mixup: expected augment, crop_ratio"),
        (["+recipe.other.key=1"], "nothing reads recipe.other.key"),
        (["+x=1"], "nothing reads x with model=linear_infvit: leave out x"),
        (["+weights=FILE"], "nothing reads weights"),
        (["+size.foo=1"], "nothing reads size.foo .*: expected depth, dim"),
        (["++size={foo: 1}"], "nothing reads size.foo"),
        (["+data.foo=1"], "nothing reads data.foo"),
        (["+checkpoint.foo=1"], "nothing reads checkpoint.foo .*: expected every_minutes"),
        (["~callbacks.checkpointing", "checkpoint.every_minutes=1"], "nothing reads checkpoint.every_minutes"),
        (["callbacks.ema=null", "recipe.ema={decay: 0.9}"], "nothing reads recipe.ema"),
        (
            [TIMM, "recipe.model.class_token=false"],
            "recipe.model.class_token with model=deit_tiny.* expected drop_path",
        ),
        ([TIMM, "+positions=std0.02"], "nothing reads recipe.model.positions with model=deit_tiny"),
        ([TIMM, "+locality=dwconv"], "nothing reads model.attention with model=deit.* leave out locality=dwconv"),
        ([TIMM, "size.dim=64"], "nothing reads size.dim with model=deit_tiny"),
        (["recipe.optimizer.opt=sgd", "recipe.optimizer.betas=[0.5,0.9]"], "betas.0 has no effect on sgd"),
        (["+recipe.optimizer.momentum=0.5"], "recipe.optimizer.momentum has no effect on adamw"),
        (["+recipe.optimizer.lr=1"], "recipe.optimizer.lr has no effect, .* give recipe.base_lr"),
        (["+recipe.schedule.warmup=1"], "recipe.schedule.warmup has no effect, .* give recipe.warmup_epochs"),
        (["+model.attention.num_heads=2"], "model.attention.num_heads has no effect, .* give size.heads"),
        (["+trainer.logger=false"], "trainer.logger has no effect"),
    ],
)
def test_a_setting_without_effect_is_refused_by_name(overrides, says):
    with pytest.raises(UsageError, match=says):
        check(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        [
            "+model.depth=3",
            "+progressive=from160",
            "+gamma=shared",
            "+positions=std0.02",
            "+dry_run=true",
            "data.root=X",
        ],
        [TIMM, "recipe.model.drop_path=0.3", "size.image_size=64", "+model.net.patch_size=8"],
        ["experiment=resolution", "+scale=cpu", "resolutions=8", "+recipe.optimizer.layer_decay=0.9", "seed=3"],
        ["data/loader=torch", "+data.loader.timeout=3", "recipe.optimizer.opt=sgd", "threads=null", "~logger.wandb"],
    ],
)
def test_settings_with_an_effect_are_not(overrides):
    check(*overrides)


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("+recipe.schedule.gamma=1", "recipe.schedule.gamma"),
        ("+recipe.mixup.gamma=1", "recipe.mixup.gamma"),
        ("+recipe.augmentation.augment.gamma=1", "recipe.augmentation.augment.gamma"),
    ],
)
def test_an_argument_that_its_class_does_not_take_is_refused_by_name(override, says):
    with pytest.raises(UsageError, match=says):
        check_config(composed(override), "data.module", "recipe")


@pytest.mark.parametrize("words", [["eval=accuracy", "+compile=true"], ["eval=efficiency", "+weights=FILE"]])
def test_a_measurement_refuses_them_too(cli, words):
    assert f"nothing reads {words[1].strip('+').partition('=')[0]}" in cli("eval", *words).error()


def test_an_optimizers_unknown_key_is_refused_when_it_is_made():
    net = nn.Linear(1, 1)
    make = optimization(composed("+recipe.optimizer.gamma=1").recipe, net)["optimizer"]
    with pytest.raises(TypeError, match="gamma"):
        make(net, lr=0.1)


def test_layer_decay_without_an_order_of_layers_is_refused():
    with pytest.raises(UsageError, match=r"layer_decay needs the order of layers, and Linear names none"):
        optimization(composed("+recipe.optimizer.layer_decay=0.9").recipe, nn.Linear(1, 1))


def test_an_average_of_directions_that_performer_drew_is_refused():
    net, ema = nn.Sequential(PerformerAttention(16, 2)), "lightning.pytorch.callbacks.EMAWeightAveraging"
    assert optimization(composed(f"recipe.ema={{_target_: {ema}, use_buffers: false}}").recipe, net)
    with pytest.raises(UsageError, match=r"those of PerformerAttention.*use_buffers: false"):
        optimization(composed(f"recipe.ema={{_target_: {ema}}}").recipe, net)
