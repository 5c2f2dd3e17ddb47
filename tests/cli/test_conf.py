"""Every config composes, and its models are built as described."""

import functools
import itertools
import re
from functools import reduce
from operator import getitem
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import OmegaConf

from infvit.attention import ATTENTIONS
from infvit.cli import resolvers
from infvit.cli.validation import check_config
from infvit.errors import UsageError
from infvit.run.identity import config_hash, recipe_hash, settings, variant

CONF = Path(__file__).parents[2] / "conf"


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml") if not path.stem.startswith("_"))


@functools.cache
def composed(*overrides: str, script: str = "train"):
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(script, [*overrides])


ATTENTION_MODELS = [model for model in options("model") if model != "timm"]


@pytest.mark.parametrize(
    "override",
    [f"model={model}" for model in ATTENTION_MODELS]
    + [f"{group}={name}" for group in ("size", "recipe") for name in options(group)],
)
def test_every_model_size_and_recipe(override):
    cfg = composed(override)
    with torch.device("meta"):
        net = instantiate(cfg.model.net, num_classes=10, _convert_="all")
    assert len(net.blocks) == cfg.backbone.depth == cfg.model.get("depth", cfg.size.depth)
    assert net.blocks[0].attn.num_heads == cfg.size.heads
    assert net.blocks[-1].drop_path.drop_prob == pytest.approx(cfg.recipe.model.drop_path)
    assert type(net.blocks[0].attn).__name__ == cfg.model.attention._target_.rsplit(".", 1)[-1]


def test_every_attention_has_a_model():
    texts = [(CONF / "model" / f"{model}.yaml").read_text() for model in ATTENTION_MODELS]
    classes = {name for text in texts for name in re.findall(r"_target_: infvit\.attention\.(\w+)", text)}
    assert classes == {attention.__name__ for attention in ATTENTIONS.values()}


def test_linformer_is_built_for_the_tokens_of_size_and_recipe():
    sizes = (["size=large4"], ["size=tiny"], ["size=tiny", "recipe.model.class_token=false"])
    tokens = [composed("model=linformer", *size).model.attention.tokens for size in sizes]
    assert tokens == [197, 17, 16]


def test_a_model_of_timm_takes_the_recipes_stochastic_depth_and_the_size_of_the_images():
    cfg = composed("model=timm", "model.name=swin_tiny_patch4_window7_224", "size.image_size=64")
    with torch.device("meta"):
        net = instantiate(cfg.model.net, num_classes=10, _convert_="all")
        assert net(torch.empty(1, 3, 64, 64)).shape == (1, 10)
    assert net.layers[-1].blocks[-1].drop_path1.drop_prob == pytest.approx(cfg.recipe.model.drop_path)


CHOSEN = {
    group
    for entry in OmegaConf.load(CONF / "train.yaml").defaults
    if entry not in ("backbone", "_self_")
    for group in entry
}
GROUPS = {str(path.parent.relative_to(CONF)) for path in CONF.rglob("*.yaml")} - {".", "eval", "hydra/launcher"}
OTHERS = sorted(GROUPS - {"model", "size", "recipe"})


@pytest.mark.parametrize(
    "override",
    [f"{'' if group in CHOSEN or '/' in group else '+'}{group}={name}" for group in OTHERS for name in options(group)],
)
def test_every_option_of_every_other_group_composes_and_its_values_have_the_right_types(override):
    cfg = composed(override)
    assert cfg.name == (override.removeprefix("experiment=") if override.startswith("experiment=") else "train")
    assert cfg.trainer.max_epochs == cfg.recipe.epochs
    check_config(cfg, "model.net", "recipe")


@pytest.mark.parametrize("measurement", options("eval"))
def test_every_measurement_composes(measurement):
    assert composed(f"eval={measurement}", script="eval").measure._target_.startswith("infvit.measure.")


TABLES = [name for name in options("experiment") if name != "search"]


def jobs(*overrides: str) -> list[list[str]]:
    """The overrides of each job of a sweep."""
    resolvers.register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        params = compose("train", [*overrides], return_hydra_config=True).hydra.sweeper.params or {}
        params = {name: params[name] for name in params}  # interpolations resolved
    swept = OverridesParser.create().parse_overrides([f"{name}={value}" for name, value in params.items()])
    values = [
        [f"{o.get_key_element()}={value}" for value in o.sweep_string_iterator()]
        if o.is_discrete_sweep()
        else [o.input_line]
        for o in swept
    ]
    return [[*overrides, *job] for job in itertools.product(*values)]


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["", *options("scale")])
@pytest.mark.parametrize("experiment", TABLES)
def test_every_row_of_every_table_is_a_model(experiment, scale):
    """The experiment's file alone is the sweep; its rows are models that can be built, no two alike."""
    chosen = [f"experiment={experiment}", *([f"+scale={scale}"] if scale else [])]
    rows = [job for job in jobs(*chosen) if "seed=0" in job]
    assert len(rows) >= 3
    hashes = set()
    rows = rows if scale == "cpu" and experiment != "locality" else [rows[0], rows[-1]]  # its models are the zoo's
    with initialize_config_dir(str(CONF), version_base="1.3"):  # once: it then reads each file once
        for row in rows:
            cfg = compose("train", row)
            hashes.add(config_hash(cfg))
            if scale == "cpu":
                assert cfg.data.name == "digits"
                with torch.device("meta"):
                    instantiate(cfg.model.net, num_classes=10, _convert_="all")
    assert len(hashes) == len(rows)


def test_the_zoo_has_every_attention():
    zoo = {override for job in jobs("experiment=attention_zoo") for override in job if override.startswith("model=")}
    assert zoo == {f"model={name}" for name in options("model")} - {"model=infvit_24l", "model=timm"}


def test_the_published_tables_have_five_seeds():
    for experiment, scale in (("attention_zoo", "cpu"), ("ablation_positions", "cpu"), ("equal_depth", "mnist5k")):
        seeds = {job[-1] for job in jobs(f"experiment={experiment}", f"+scale={scale}")}
        assert seeds == {f"seed={seed}" for seed in range(5)}


def test_locality_is_a_part_of_its_own_of_each_attention_that_can_have_it():
    for model in ("vit", "linear_infvit"):
        cfg = composed(f"model={model}", "size=tiny", "+locality=dwconv")
        with torch.device("meta"):
            net = instantiate(cfg.model.net, num_classes=10, _convert_="all")
        assert [p.shape for p in net.blocks[0].attn.locality.parameters()] == [(64, 1, 3, 3), (64,)]
    plain, same, other = (composed(*more) for more in ((), ("+locality=none",), ("+locality=dwconv",)))
    assert config_hash(plain) == config_hash(same) != config_hash(other)
    chosen = variant(["model=vit", "+locality=dwconv", "gamma=fixed"]), variant(["locality=none"])
    assert chosen == ("gamma=fixed locality=dwconv", "")
    own = composed("+locality=dwconv", "model.attention._target_=tests.check.plain.Plain")
    with pytest.raises(UsageError, match=r"model\.attention\.locality=3: Plain does not take locality: expected"):
        check_config(own, "model.net")


@pytest.mark.slow
def test_the_config_hash_depends_on_what_is_computed_and_not_on_where():
    plain = config_hash(composed("experiment=digits"))
    for same in (
        "trainer.devices=2",
        "data.module.cache_dir=elsewhere",
        "data.module.eval_batch_size=8",
        "trainer.num_sanity_val_steps=2",
        "name=other",
        "logger=csv",
        "threads=2",
    ):
        assert config_hash(composed("experiment=digits", same)) == plain, same
    for other in (
        "seed=1",
        "model=vit",
        "size.depth=3",
        "recipe.model.drop_path=0.1",
        "trainer.max_epochs=2",
        "data/loader=torch",
    ):
        assert config_hash(composed("experiment=digits", other)) != plain, other


def test_the_folder_of_the_images_changes_the_hash_only_of_data_that_have_no_name():
    def hashes(*overrides):
        roots = ("/a", "/b")
        return {config_hash(composed(*overrides, f"data.root={root}")) for root in roots}

    assert len(hashes()) == len(hashes("data=imagefolder", "data.name=flowers")) == 1
    assert len(hashes("data=imagefolder")) == 2


@pytest.mark.slow
def test_the_settings_of_a_row_do_not_include_seed_and_machine():
    plain = settings(composed("experiment=digits"))
    for same in ("seed=1", "trainer=ddp_cpu", "trainer.accumulate_grad_batches=2", "data.module.workers=3"):
        assert settings(composed("experiment=digits", same)) == plain, same
    for override, key, value in (
        ("compile=true", "compile", True),
        ("+trainer.limit_train_batches=2", "trainer.limit_train_batches", 2),
        ("data.module.repeats=3", "data.module.repeats", 3),
        ("model=infvit_3hops", "model.attention.hops", 3),
        ("size.mlp_ratio=1", "size.mlp_ratio", 1),
    ):
        assert plain.get(key, "unset") != value
        assert settings(composed("experiment=digits", override))[key] == value


def test_the_default_is_the_papers_run():
    cfg = composed()
    assert (cfg.model.name, cfg.recipe.name, cfg.data.name, cfg.data.num_classes) == (
        "linear_infvit",
        "deit",
        "imagenet",
        1000,
    )
    recipe = cfg.recipe
    assert (recipe.epochs, recipe.batch_size, recipe.base_lr * recipe.batch_size / 512) == (300, 1024, 1e-3)
    assert (recipe.optimizer.weight_decay, recipe.schedule.min_lr, recipe.warmup_epochs) == (0.05, 1e-5, 5)
    assert (recipe.label_smoothing, recipe.model.drop_path, recipe.augmentation.repeats) == (0.1, 0.1, 3)
    assert (recipe.mixup.mixup_alpha, recipe.mixup.cutmix_alpha, recipe.mixup.switch_prob) == (0.8, 1.0, 0.5)
    augment, erasing = recipe.augmentation.augment, recipe.augmentation.erasing
    assert (augment.magnitude, augment.magnitude_std, erasing.probability) == (9, 0.5, 0.25)
    assert (recipe.clip_grad, recipe.ema, recipe.augmentation.progressive) == (None, None, None)


@pytest.mark.parametrize("recipe", options("recipe"))
def test_no_recipe_smooths_labels_twice_and_all_have_the_same_keys(recipe):
    cfg = composed(f"recipe={recipe}").recipe
    if cfg.mixup is not None:
        assert instantiate(cfg.mixup)(num_classes=10).label_smoothing == 0  # timm's default is 0.1; the loss smooths
    deit = composed("recipe=deit").recipe
    for section in ((), ("augmentation",), ("model",)):
        ours, theirs = (reduce(getitem, section, recipe) for recipe in (cfg, deit))
        assert set(ours) == set(theirs)


def test_progressive_resolution_is_off_by_default_and_part_of_the_recipe():
    cfg, growing = composed(), composed("+progressive=from160")
    assert cfg.data.module.progressive is None
    assert recipe_hash(cfg.recipe) != recipe_hash(growing.recipe)
    ramp = instantiate(growing.data.module.progressive)
    assert [ramp.side(epoch, 224) for epoch in (0, 222, 240, 258, 299)] == [160, 160, 192, 224, 224]


def test_no_model_touches_the_recipe():
    """ "The same recipe" is one file: another model does not change a value of it."""
    recipes = {recipe_hash(composed(f"model={model}").recipe) for model in options("model")}
    assert len(recipes) == 1
    assert recipe_hash(composed("recipe.epochs=299").recipe) not in recipes
    for model in options("model"):
        assert set(OmegaConf.load(CONF / "model" / f"{model}.yaml")) <= {
            "defaults",
            "name",
            "net",
            "attention",
            "depth",
        }
