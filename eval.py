"""Takes one measurement: `python eval.py ckpt=RUN/checkpoints/last.ckpt` is a run's accuracy, `eval=NAME` another one.

Composes conf/eval.yaml and gives the measurement (conf/eval/, infvit/measure/) the models that it works on.
"""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from callbacks.loggers import log_measurement
from infvit import cli


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().with_name("conf")), config_name="eval")
@cli.continue_sweep_on_error
def evaluate(cfg: DictConfig) -> Any:
    """Takes one measurement; returns its figure, which sweepers may maximise."""
    cli.check_measurement(cfg)
    cli.use_threads(cfg.threads)
    measure = instantiate(cfg.measure, _convert_="all")
    out = Path(HydraConfig.get().runtime.output_dir)
    with cli.friendly_eval_errors():
        figure = measure(cli.ConfigModelSource(cfg), out)
    if cfg.wandb and rank_zero_only.rank == 0:
        log_measurement(cfg, out)
    return figure


if __name__ == "__main__":
    cli.run(evaluate)
