"""The command line: what train.py and eval.py are made of. Importing it registers the resolvers of conf/."""

from infvit.cli import resolvers as resolvers
from infvit.cli.devices import check_batch, prepare_run, use_threads
from infvit.cli.dry_run import estimate_run
from infvit.cli.entrypoint import continue_sweep_on_error, run
from infvit.cli.load_run import ConfigModelSource
from infvit.cli.recipe import optimization
from infvit.cli.run_errors import friendly_errors, friendly_eval_errors
from infvit.cli.run_folder import checkpoint_to_resume
from infvit.cli.validation import check_config

__all__ = [
    "ConfigModelSource",
    "check_batch",
    "check_config",
    "checkpoint_to_resume",
    "continue_sweep_on_error",
    "estimate_run",
    "friendly_errors",
    "friendly_eval_errors",
    "optimization",
    "prepare_run",
    "run",
    "use_threads",
]
