"""Takes one measurement: `python eval.py ckpt=RUN/checkpoints/last.ckpt` is a run's accuracy, `eval=NAME` another one.

Composes conf/eval.yaml and hands the measurement (conf/eval/, infvit/measure/) the models that it asks for.
"""

from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import nn

from callbacks import failures
from callbacks.checkpoint import matching_checkpoint, read_checkpoint, run_of
from callbacks.devices import check_devices
from callbacks.measurement import log_measurement
from callbacks.progress import RunProgress
from conf.resolvers import plain
from infvit.errors import UsageError
from infvit.measure.subjects import Network, Trained
from train import build


class Subjects:
    """What a measurement may ask for: models by their names in conf/model, trained ones by their checkpoints."""

    def __init__(self, cfg: DictConfig) -> None:
        self.cfg = cfg

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
        view = partial(instantiate(images.view).evaluation(), rng=np.random.default_rng())  # of which it draws nothing
        return Network(model, classes, images.mean, images.std, view, run.model.name)

    def trained(self, checkpoint: str) -> Trained:
        """The run's model with the checkpoint's weights, and its data, or those that `data=` names."""
        check_devices(self.cfg.trainer)
        run_dir, run = run_of(checkpoint)
        run.trainer = self.cfg.trainer
        if self.cfg.get("data"):
            run.data = self.cfg.data
        # The exact pipeline reads the images themselves: a machine without FFCV measures what was trained with it.
        run.data.loader = {"_target_": "data.torch_loader.TorchReader"}
        data, module = build(run)
        matching_checkpoint(checkpoint, module)
        module.load_state_dict(read_checkpoint(checkpoint)["state_dict"])
        trainer = instantiate(run.trainer, logger=False, enable_checkpointing=False, callbacks=[RunProgress()])
        row = {"ckpt": checkpoint, "model": run.model.name, "data": data.name, "fingerprint": data.fingerprint}
        return Trained(module, data, trainer, row | {"images": data.val_size}, run_dir)


@hydra.main(version_base="1.3", config_path="conf", config_name="eval")
@failures.sweep_goes_on
def evaluate(cfg: DictConfig) -> Any:
    """One measurement; returns its figure, which sweepers may maximise."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    measure = instantiate(cfg.measure, _convert_="all")
    out = Path(HydraConfig.get().runtime.output_dir)
    figure = measure(Subjects(cfg), out)
    if cfg.wandb:
        log_measurement(cfg, out)
    return figure


if __name__ == "__main__":
    failures.run(evaluate)
