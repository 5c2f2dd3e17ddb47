"""What a measurement works on: models by their names in conf/model, trained ones by their checkpoints."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError
from torch import nn

from callbacks.epoch_seed import seed_run
from callbacks.progress import RunProgress
from data.beton.loader import FFCVReader
from data.datamodule import ImageDataModule
from data.timm_view import as_published
from data.torch_loader import TorchReader
from infvit.cli.devices import check_devices
from infvit.cli.resolvers import plain
from infvit.cli.run_folder import CHECKPOINTS
from infvit.cli.targets import check_stored
from infvit.errors import UsageError
from infvit.measure.subjects import Network, Studied, Trained
from infvit.module import Classifier
from infvit.run.checkpoint import LAST, matching_classes, matching_weights, read_checkpoint
from infvit.timm_models import pretrained

Build = Callable[[DictConfig], tuple[ImageDataModule, Classifier]]

EXACT = {"_target_": "data.torch_loader.TorchReader"}
"""Reads the images themselves: a machine without FFCV measures what was trained with it."""


class Subjects:
    """What a measurement may ask for, see `infvit.measure.subjects.Subjects`.

    Args:
        cfg: of the measurement, as composed from conf/eval.yaml.
        build: makes the data and the model of a run's config.
    """

    def __init__(self, cfg: DictConfig, build: Build) -> None:
        self.cfg, self.build = cfg, build

    def untrained(self, model: str, *overrides: str) -> "partial[nn.Module]":
        """A maker of the model at the size that `size=` names, to be called here or in another process."""
        size = [f"size={HydraConfig.get().runtime.choices['size']}"]
        size += [f"size.{name}={value}" for name, value in self.cfg.size.items()]
        net = plain(hydra.compose("train", [f"model={model}", *size, *overrides]).model.net)
        return instantiate(net, _partial_=True, _convert_="all")

    def network(self, checkpoint: str) -> Network:
        """The run's model with the checkpoint's weights, without its data."""
        _, run = run_of(checkpoint)
        content = read_checkpoint(checkpoint)
        weights = {name[4:]: w for name, w in content["state_dict"].items() if name.startswith("net.")}
        classes = content.get("ImageDataModule", {}).get("classes")
        if classes is None:
            raise UsageError(f"{checkpoint} holds no names of classes, written before they were kept: train anew")
        model = instantiate(run.model.net, num_classes=len(classes), _convert_="all").eval()
        model.load_state_dict(weights)
        images = run.data.module
        view = instantiate(images.view).evaluation()
        return Network(model, classes, images.mean, images.std, view, run.model.name)

    def trained(self, checkpoint: str) -> Trained:
        """The run's model with the checkpoint's weights, and its data, or those that `data=` names."""
        run, data, module, weights, run_dir = self._built(checkpoint)
        module.load_state_dict(weights)
        row = {"model": run.model.name, "ckpt": checkpoint, "weights": None}
        tested = self._tested(module.net, data, run, row)
        return tested._replace(run_dir=run_dir, last=_is_last(checkpoint, run_dir))

    def studied(self, checkpoint: str) -> Studied:
        """The run's model with the checkpoint's weights and as its seed made it, and images likewise."""
        run, data, module, weights, run_dir = self._built(checkpoint)
        start = copy.deepcopy(module.net).eval()
        module.load_state_dict(weights)
        row = {"ckpt": checkpoint, "model": run.model.name, "data": data.name, "fingerprint": data.fingerprint}
        row |= {"images": data.val_size}
        return Studied(module.net.eval(), start, data, row, run_dir, _is_last(checkpoint, run_dir))

    def _built(self, checkpoint: str) -> tuple[DictConfig, ImageDataModule, Classifier, dict[str, Any], Path]:
        """The run's config, its data, its model as training started with it, the checkpoint's weights, its folder."""
        run_dir, run = run_of(checkpoint)
        run.data = self._data(run.data)
        run.data.loader = EXACT
        seed_run(run.seed)
        data, module = self.build(run)
        content = read_checkpoint(checkpoint)
        matching_classes(checkpoint, content, data.classes, data.name)
        matching_weights(checkpoint, content, module)
        return run, data, module, content["state_dict"], run_dir

    def _data(self, own: DictConfig) -> DictConfig:
        """A run's data with what is given anew, or those that `data=` names, normalised as the run's were."""
        if self._names_data():
            scale = {name: own.module[name] for name in ("mean", "std")}  # the model knows no other
            return OmegaConf.merge(self.cfg.data, {"module": scale})  # type: ignore[return-value]
        OmegaConf.set_struct(own, True)
        try:
            return OmegaConf.merge(own, _given(plain(self.cfg.data)))  # type: ignore[return-value]
        except ConfigKeyError as error:
            raise UsageError(f"{error.full_key} is no setting of the run's data={own.name}: leave it out") from error

    def _names_data(self) -> bool:
        """Whether `data=` names a data set; settings alone are of the run's own."""
        return "source" in self.cfg.data.module

    def pretrained(self, name: str, weights: str | None) -> Trained:
        """timm's model on the data that `data=` names, which it sees as its published configuration says."""
        if not self._names_data():
            raise UsageError(f"model.name={name} brings no data: say which, e.g. data=imagenet data.root=DIR")
        run = hydra.compose("train", ["model=timm"])  # whatever a data set asks of a recipe
        run.data = self.cfg.data
        run.data.loader = EXACT
        run.data.module.update(as_published(name))
        data = instantiate(run.data.module, batch_size=1, _convert_="all")
        row = {"model": name, "ckpt": None, "weights": weights or "as published"}
        return self._tested(pretrained(name, data.classes, weights), data, run, row)

    def _tested(self, net: nn.Module, data: ImageDataModule, run: DictConfig, row: dict[str, Any]) -> Trained:
        check_devices(self.cfg.trainer)
        run.trainer = self.cfg.trainer
        trainer = instantiate(run.trainer, logger=False, enable_checkpointing=False, callbacks=[RunProgress()])
        row |= {"data": data.name, "fingerprint": data.fingerprint, "view": data.seen, "precision": trainer.precision}
        return Trained(net, data, {"exact": TorchReader, "ffcv": FFCVReader}, trainer, row)


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that have a value."""
    inner = {name: _given(value) if isinstance(value, dict) else value for name, value in settings.items()}
    return {name: value for name, value in inner.items() if value not in ("???", {})}


def _is_last(checkpoint: str, run_dir: Path) -> bool:
    return Path(checkpoint).resolve() == (run_dir / CHECKPOINTS / LAST).resolve()


def run_of(checkpoint: str | Path) -> tuple[Path, DictConfig]:
    """The folder of the run that wrote a checkpoint, and the run's composed config, which calls what a run may call."""
    folders = Path(checkpoint).resolve().parents[:2]
    found = next((folder for folder in folders if (folder / ".hydra" / "config.yaml").is_file()), None)
    if not Path(checkpoint).is_file() or found is None:
        missing = "does not exist" if not Path(checkpoint).is_file() else "lies in no run folder (.hydra/config.yaml)"
        raise UsageError(f"checkpoint {checkpoint} {missing}: give a .ckpt file in the folder of its run")
    path = found / ".hydra" / "config.yaml"
    config = cast(DictConfig, OmegaConf.load(path))
    check_stored(config, path)
    return found, config
