"""Trains one model: `python train.py` is the paper's run, `python train.py experiment=digits` a small real one.

Composes conf/train.yaml, trains, tests with the exact pipeline, and leaves result.json in the run's folder.
"""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from callbacks.run_record import RunRecord
from infvit import cli
from infvit.module import Classifier
from infvit.run.result import score

PARTS = ("data.module", "model.net", "recipe", "trainer", "callbacks", "logger")


def build(cfg: DictConfig) -> tuple[Any, Classifier]:
    """The data module and the model with its recipe; the data set determines the number of classes."""
    data = instantiate(cfg.data.module, _convert_="all")
    net = cli.make_network(cfg, data.classes)
    if cfg.compile:
        net.compile()
    return data, Classifier(net, data.num_classes, **cli.optimization(cfg.recipe, net))


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().with_name("conf")), config_name="train")
@cli.continue_sweep_on_error
def train(cfg: DictConfig) -> float | None:
    """Runs one training; returns its top-1, which sweepers may maximise."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if cfg.dry_run:
        cli.prepare_run(cfg, *PARTS)
        return cli.estimate_run(cfg, *build(cfg), run_dir)
    with RunRecord(cfg, run_dir) as record:
        cli.prepare_run(cfg, *PARTS)
        data, module = build(cfg)
        record.describe(module, data)
        checkpoint = cli.checkpoint_to_resume(cfg, run_dir, module, data, record.result)
        callbacks = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
        loggers = [instantiate(logger) for logger in cfg.logger.values()]
        trainer = instantiate(cfg.trainer, callbacks=[*callbacks, record], logger=loggers)
        cli.check_batch(trainer, module, data)
        record.announce(module)
        for logger in loggers:
            logger.log_hyperparams(OmegaConf.to_container(cfg, resolve=True))
        with cli.friendly_errors(trainer, module, data):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if record.result.status == "running" and data.has_test:
                trainer.test(module, datamodule=data, verbose=False)
    return score(record.result)


if __name__ == "__main__":
    cli.run(train)
