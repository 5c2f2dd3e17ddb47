"""Takes one measurement: `python eval.py ckpt=RUN/checkpoints/last.ckpt` is a run's accuracy, `eval=NAME` another one.

Composes conf/eval.yaml and hands the measurement (conf/eval/, infvit/measure/) the models that it asks for.
"""

from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from lightning.pytorch.utilities import rank_zero_only
from omegaconf import DictConfig

from callbacks.loggers import log_measurement
from infvit.cli import entrypoint
from infvit.cli.devices import use_threads, workers_of_this_job
from infvit.cli.load_run import ConfigModelSource
from infvit.cli.run_errors import friendly_eval_errors
from infvit.cli.targets import check_targets
from infvit.cli.validation import check_values


@hydra.main(version_base="1.3", config_path=str(Path(__file__).resolve().with_name("conf")), config_name="eval")
@entrypoint.continue_sweep_on_error
def evaluate(cfg: DictConfig) -> Any:
    """One measurement; returns its figure, which sweepers may maximise."""
    check_targets(cfg)
    check_values(cfg, "measure")
    use_threads(cfg.threads)
    measure = instantiate(cfg.measure, _convert_="all")
    out = Path(HydraConfig.get().runtime.output_dir)
    with workers_of_this_job(), friendly_eval_errors():
        figure = measure(ConfigModelSource(cfg), out)
    if cfg.wandb and rank_zero_only.rank == 0:
        log_measurement(cfg, out)
    return figure


if __name__ == "__main__":
    entrypoint.run(evaluate)
