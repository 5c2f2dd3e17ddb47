"""Trains one model: `python train.py` is the paper's run, `python train.py experiment=digits` a small real one.

Composes conf/train.yaml, fits, measures with the exact pipeline, and leaves result.json in the run's folder.
"""

from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig

from callbacks.epoch_seed import seed_run
from callbacks.run_record import RunRecord
from data.datamodule import ImageDataModule
from infvit.cli import entrypoint, resolvers
from infvit.cli.devices import check_batch, check_devices, use_threads, workers_of_this_job
from infvit.cli.dry_run import rehearse
from infvit.cli.recipe import check_recipe, optimization
from infvit.cli.run_errors import friendly_errors
from infvit.cli.run_folder import check_run, checkpoint_to_go_on_from
from infvit.cli.targets import check_targets
from infvit.cli.validation import check_values
from infvit.errors import expect
from infvit.module import Classifier
from infvit.run.checkpoint import matching_checkpoint
from infvit.run.result import score

PARTS = ("data.module", "model.net", "recipe", "trainer", "callbacks", "logger")


def build(cfg: DictConfig) -> tuple[ImageDataModule, Classifier]:
    """The data and the model with its recipe, as composed; the data say how many classes there are."""
    data = instantiate(cfg.data.module, _convert_="all")
    net = instantiate(cfg.model.net, num_classes=data.num_classes, _convert_="all")
    expect(isinstance(cfg.compile, bool), f"compile={cfg.compile}", "true or false")
    if cfg.compile:
        net.compile()
    return data, Classifier(net, data.num_classes, **optimization(cfg.recipe))


def start(cfg: DictConfig) -> tuple[ImageDataModule, Classifier]:
    """The data and the model, on a machine that has what is asked for."""
    check_targets(cfg)
    check_recipe(cfg, HydraConfig.get().overrides.task)
    check_values(cfg, *PARTS)
    check_devices(cfg.trainer)
    seed_run(cfg.seed)
    use_threads(cfg.threads)
    return build(cfg)


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().with_name("conf")), config_name="train")
@entrypoint.continue_sweep_on_error
def train(cfg: DictConfig) -> float | None:
    """One run; returns its top-1, which sweepers may maximise."""
    run_dir = Path(HydraConfig.get().runtime.output_dir)
    if cfg.dry_run:
        with workers_of_this_job():
            data, module = start(cfg)
            return rehearse(cfg, data, module, run_dir)
    with RunRecord(cfg, run_dir) as record, workers_of_this_job():
        data, module = start(cfg)
        record.describe(module, data)
        checkpoint = matching_checkpoint(checkpoint_to_go_on_from(cfg, run_dir), module)
        check_run(checkpoint, record.result)
        watchers = [instantiate(callback) for callback in cfg.callbacks.values() if callback]
        loggers = [instantiate(logger) for logger in cfg.logger.values()]
        trainer = instantiate(cfg.trainer, callbacks=[*watchers, record], logger=loggers)
        check_batch(trainer, module, data)
        record.announce(module)
        for logger in loggers:
            logger.log_hyperparams(resolvers.plain(cfg))
        with friendly_errors(trainer, module, data):
            trainer.fit(module, datamodule=data, ckpt_path=checkpoint, weights_only=True)
            if record.result.status == "running" and data.has_test:
                trainer.test(module, datamodule=data, verbose=False)
    return score(record.result)


if __name__ == "__main__":
    entrypoint.run(train)
