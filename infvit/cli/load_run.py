"""Loads the models that a measurement works on: by name from conf/model, from a run's checkpoint, or from timm."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch import Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf
from torch import nn

from infvit.class_names import places, synsets
from infvit.cli.devices import check_devices
from infvit.cli.run_folder import CHECKPOINTS
from infvit.cli.start import make_network
from infvit.cli.targets import stored_config
from infvit.errors import UsageError
from infvit.measure.model_source import EvaluationData, LoadedRun
from infvit.run.checkpoint import LAST, classes_of, matching_weights, read_checkpoint
from infvit.timm_models import pretrained, published_view

EXACT = {"_target_": "data.torch_loader.TorchReader"}
"""Reads the images themselves, so that a machine without FFCV can measure what was trained with it."""


class ConfigModelSource:
    """The `infvit.measure.model_source.ModelSource` of a config.

    Args:
        cfg: of the measurement, as composed from conf/eval.yaml.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

    def untrained(self, model: str, *overrides: str) -> "partial[nn.Module]":
        """Returns a constructor of the model at the size that `size=` names; it can be called in another process."""
        size = [f"size={HydraConfig.get().runtime.choices['size']}"]
        size += [f"size.{name}={value}" for name, value in self.cfg.size.items()]
        net = hydra.compose("train", [f"model={model}", *size, *overrides]).model.net
        return instantiate(OmegaConf.to_container(net, resolve=True), _partial_=True, _convert_="all")

    def load(self, checkpoint: str) -> LoadedRun:
        """The run's model with the checkpoint's weights; its data, or those that `data=` names, are built when used."""
        run_dir, run = run_of(checkpoint, self.cfg.trust)
        content = read_checkpoint(checkpoint)
        classes = classes_of(checkpoint, content)
        model = make_network(run, classes, trained=True).eval()
        matching_weights(checkpoint, content, nn.ModuleDict({"net": model}))
        model.load_state_dict({name.removeprefix("net."): w for name, w in content["state_dict"].items()})
        run.data = self._data(run.data)
        images = run.data.module
        images.loader = EXACT

        def make_data() -> EvaluationData:
            data = instantiate(images, _convert_="all")
            data.match_classes(classes, checkpoint)
            return data

        return LoadedRun(
            name=run.model.name,
            model=model,
            classes=classes,
            mean=images.mean,
            std=images.std,
            view=instantiate(images.view).evaluation(),
            make_data=make_data,
            checkpoint=checkpoint,
            run_dir=run_dir,
            is_last=Path(checkpoint).resolve() == (run_dir / CHECKPOINTS / LAST).resolve(),
        )

    def initial(self, checkpoint: str) -> nn.Module:
        """The run's model before training, rebuilt from the run's seed."""
        _, run = run_of(checkpoint, self.cfg.trust)
        seed_everything(run.seed, workers=True, verbose=False)
        return make_network(run, classes_of(checkpoint, read_checkpoint(checkpoint))).eval()

    def pretrained(self, name: str, weights: str | None) -> LoadedRun:
        """timm's model on the data that `data=` names, seen as its published configuration says."""
        if not self._names_data():
            raise UsageError(f"model.name={name} brings no data: say which, e.g. data=imagenet data.root=DIR")
        run = hydra.compose("train", ["model=timm"])  # for what a data config interpolates from a recipe
        run.data = self.cfg.data
        run.data.loader = EXACT
        how = published_view(name)
        run.data.module.update(how | {"view": {"_target_": "data.view.View"} | how["view"]})
        data = instantiate(run.data.module, batch_size=1, _convert_="all")
        if weights is None and None not in places(data.classes, synsets()):
            data.match_classes(synsets(), name)
        return LoadedRun(
            name=name,
            model=pretrained(name, data.classes, weights),
            classes=data.classes,
            mean=how["mean"],
            std=how["std"],
            view=data.view,
            make_data=lambda: data,
            weights=weights or "as published",
        )

    def trainer(self) -> Trainer:
        """A trainer for `Trainer.test` on the devices that `trainer=` names."""
        check_devices(self.cfg.trainer)
        # Both come from a recipe, which a measurement does not have and a test does not need.
        return instantiate(self.cfg.trainer, max_epochs=None, gradient_clip_val=None)

    def _data(self, own: DictConfig) -> DictConfig:
        """The run's data config with what the command line changes, or that of `data=` with the run's normalisation."""
        if self._names_data():
            scale = {name: own.module[name] for name in ("mean", "std")}  # the model was trained with it
            return OmegaConf.merge(self.cfg.data, {"module": scale})  # type: ignore[return-value]
        OmegaConf.set_struct(own, True)
        return OmegaConf.merge(own, _given(self.cfg.data))  # type: ignore[return-value]

    def _names_data(self) -> bool:
        """Whether `data=` names a data set; without one, settings such as data.root=DIR are of the run's own."""
        return "source" in self.cfg.data.module


def _given(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that have a value."""
    present = {key: settings[key] for key in settings if key in settings}
    inner = {key: _given(value) if isinstance(value, Mapping) else value for key, value in present.items()}
    return {key: value for key, value in inner.items() if value != {}}


def run_of(checkpoint: str | Path, trust: Collection[str] = ()) -> tuple[Path, DictConfig]:
    """The folder of the run that wrote a checkpoint, and `stored_config` of it."""
    folders = Path(checkpoint).resolve().parents[:2]
    found = next((folder for folder in folders if (folder / ".hydra" / "config.yaml").is_file()), None)
    if not Path(checkpoint).is_file() or found is None:
        missing = "does not exist" if not Path(checkpoint).is_file() else "is not in a run folder (.hydra/config.yaml)"
        raise UsageError(f"checkpoint {checkpoint} {missing}: give a .ckpt file in the folder of its run")
    return found, stored_config(found / ".hydra" / "config.yaml", trust)
