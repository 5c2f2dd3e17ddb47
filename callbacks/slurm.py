"""Sweeps on SLURM whose jobs ask for different things, such as more devices for a larger model."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

if TYPE_CHECKING:
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher


class OneArrayForEach(Callback):
    """Lets Hydra's launcher for SLURM ask what each job asks for; it asks for all as the sweep's first words say."""

    def on_multirun_start(self, config: DictConfig, **_: Any) -> None:
        if str(config.hydra.launcher.get("_target_")).endswith(".submitit_launcher.SlurmLauncher"):
            from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher

            SlurmLauncher.launch = launch


def launch(self: "SlurmLauncher", job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> list[JobReturn]:
    """Submits an array of jobs for each set of settings of `hydra.launcher` that they have, and waits for all."""
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf

    assert self.config is not None
    assert self.hydra_context is not None
    of_any_queue = set(OmegaConf.structured(BaseQueueConf))
    alike: dict[str, list[tuple[int, Sequence[str]]]] = {}
    for number, overrides in enumerate(job_overrides, initial_job_idx):
        config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
        asked = OmegaConf.to_container(config.hydra.launcher, resolve=True)
        alike.setdefault(json.dumps(asked), []).append((number, overrides))
    jobs: dict[int, Any] = {}
    for asked, numbered in alike.items():
        settings = {name: value for name, value in json.loads(asked).items() if name != "_target_"}
        executor = submitit.AutoExecutor(
            folder=settings.pop("submitit_folder"),
            cluster="slurm",
            slurm_max_num_timeout=settings.pop("max_num_timeout"),
        )
        executor.update_parameters(
            **{name if name in of_any_queue else f"slurm_{name}": value for name, value in settings.items()}
        )
        state = Singleton.get_state()
        calls = [(list(words), "hydra.sweep.dir", number, f"job {number}", state) for number, words in numbered]
        submitted = executor.map_array(self, *zip(*calls, strict=True))
        jobs |= dict(zip([number for number, _ in numbered], submitted, strict=True))
    return [jobs[number].results()[0] for number in sorted(jobs)]
