"""Saves the recipe of the best trial of a search as a file that any model can train with."""

import shlex
import sys
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf, flag_override

from infvit.run.environment import command


class SaveBestRecipe(Callback):
    """Writes the best trial of an Optuna sweep to `<sweep folder>/recipe/<name>.yaml`, and prints how to use it.

    Args:
        name: of the recipe, for `recipe=<name>`.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        """Takes the seeds of a scale out of what is searched: the best trial would be the luckiest one."""
        params = config.hydra.sweeper.params
        with flag_override(params, ["readonly", "struct"], False):
            params.pop("seed", None)
        overrides = OverridesParser.create().parse_overrides(list(config.hydra.overrides.task))
        if any(override.key_or_group == "seed" and override.is_sweep_override() for override in overrides):
            print("error: a search over seed= finds the luckiest one: give one seed, e.g. seed=0", file=sys.stderr)
            sys.exit(2)  # Hydra turns exceptions of its callbacks into warnings

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        folder = Path(config.hydra.sweep.dir).resolve()
        best = OmegaConf.load(folder / "optimization_results.yaml")
        path = folder / "recipe" / f"{self.name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(recipe_file(config, self.name, best.best_params, best.best_value), encoding="utf-8")
        print(
            f"\nbest of the search: {100 * best.best_value:.2f}% on held-out training images with\n"
            + "".join(f"   {name}={value}\n" for name, value in best.best_params.items())
            + f"recipe: {path}\nany model trains with it by recipe={self.name} "
            + shlex.quote(f"hydra.searchpath=[file://{folder}]")
            + f"\nor, once it is copied to conf/recipe/, by recipe={self.name} alone",
            flush=True,
        )


def recipe_file(config: DictConfig, name: str, params: DictConfig, value: float) -> str:
    """The searched recipe with the best trial's values, after a header with how it was found."""
    recipe = OmegaConf.create({"recipe": OmegaConf.to_container(config.recipe)})
    for key, best in params.items():
        if str(key).startswith("recipe."):
            OmegaConf.update(recipe, str(key), best)
    recipe.recipe.name = name
    head = (
        f"Found by Optuna on {config.model.name} alone, {config.size.depth} layers, seed {config.seed}, data "
        f"{config.data.name}: the best of {config.hydra.sweeper.n_trials} trials",
        f"by top-1 ({100 * value:.2f}%) on {100 * config.data.validation_fraction:g}% of the training images, "
        "which the trials did not train on.",
        f"Searched: {', '.join(map(str, params))}; all else is recipe {config.recipe.name}.",
        f"Command: {command()}",
        '"The same recipe" means this file; its hash is in every result.',
    )
    return "".join(f"# {line}\n" for line in head) + OmegaConf.to_yaml(recipe.recipe)
