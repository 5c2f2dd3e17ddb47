"""The command line: what train.py and eval.py are made of. Importing it registers the resolvers of conf/."""

from infvit.cli import resolvers as resolvers
from infvit.cli.devices import check_batch as check_batch
from infvit.cli.devices import check_measurement as check_measurement
from infvit.cli.devices import prepare_run as prepare_run
from infvit.cli.devices import use_threads as use_threads
from infvit.cli.dry_run import estimate_run as estimate_run
from infvit.cli.entrypoint import continue_sweep_on_error as continue_sweep_on_error
from infvit.cli.entrypoint import run as run
from infvit.cli.load_run import ConfigModelSource as ConfigModelSource
from infvit.cli.recipe import optimization as optimization
from infvit.cli.run_errors import friendly_errors as friendly_errors
from infvit.cli.run_errors import friendly_eval_errors as friendly_eval_errors
from infvit.cli.run_folder import checkpoint_to_resume as checkpoint_to_resume
from infvit.cli.start import make_network as make_network
