"""Turns out-of-memory errors and failures of the processes that read images into one-line errors with a remedy."""

import contextlib
import re
import traceback
from collections.abc import Iterator
from typing import Any

from lightning.pytorch import Trainer

from infvit.errors import UsageError, is_out_of_memory
from infvit.module import Classifier

READER_DIED = re.compile(
    r"DataLoader worker \(pid\(?s?\)? ([\d, ]+)\) .*?(killed by signal: [\w ]+|exited unexpectedly)"
)

READER_HANGS = re.compile(r"DataLoader timed out after ([\d.]+) seconds")


@contextlib.contextmanager
def friendly_errors(trainer: Trainer, module: Classifier, data: Any) -> Iterator[None]:
    """Raises UsageError for known errors of a training and its test; all other errors pass unchanged.

    Callbacks may have a method `before_launch(trainer)`, called before Lightning starts the other processes.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        getattr(callback, "before_launch", lambda _: None)(trainer)
    try:
        yield
    except (RuntimeError, MemoryError, OSError, EOFError) as error:
        line = _out_of_memory_advice(error, trainer, module, data) or _reader_advice(error)
        if line is None:
            raise
        raise UsageError(line) from error


@contextlib.contextmanager
def friendly_eval_errors() -> Iterator[None]:
    """Raises UsageError where memory runs out while images are tested; all other errors pass unchanged."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error) or "test_step" not in _functions(error):
            raise
        line = "out of memory: give fewer images a device, data.module.eval_batch_size=N, which changes no result"
        raise UsageError(f"{line} (256 unless the run's config or data= say otherwise)") from error


def _out_of_memory_advice(error: BaseException, trainer: Trainer, module: Classifier, data: Any) -> str | None:
    """Returns which batch was too large and the setting that keeps the recipe's batch; None for other errors."""
    if not is_out_of_memory(error):
        return None
    if _functions(error) & {"validation_step", "test_step"}:
        size = data.eval_batch_size
        return (
            f"out of memory with {size} images a device in evaluation: give data.module.eval_batch_size="
            f"{max(size // 2, 1)}, which changes no result"
        )
    parts, share = trainer.accumulate_grad_batches, data.per_device(trainer)
    images = parts * share
    line = (
        f"out of memory with batches of {share} images a device (recipe.batch_size={data.batch_size}, "
        f"{trainer.world_size} × {parts} of them a step): "
    )
    pairs = 1 if module.mixup is None else 2
    more = next((n for n in range(2 * parts, images + 1) if images % (n * pairs) == 0), None)
    if more is None:
        return line + "smaller ones do not keep the recipe, give more devices or a smaller model"
    return line + f"trainer.accumulate_grad_batches={more} keeps the recipe's batch, {images // more} images at a time"


def _functions(error: BaseException) -> set[str]:
    """Returns the names of the functions in the error's traceback."""
    return {frame.name for frame in traceback.extract_tb(error.__traceback__)}


def _reader_advice(error: BaseException) -> str | None:
    """Returns which process that reads images died or hangs; None for other errors."""
    if died := READER_DIED.search(str(error)):
        return (
            f"a process that reads images died (process {died[1]}, {died[2]}), perhaps out of memory: resume with "
            "resume=auto, with fewer of them by data.module.workers=N"
        )
    if "rebuild_storage_fd" in _functions(error):  # torch's, of a batch that the process had not handed over
        return (
            "a process that reads images died, perhaps out of memory: resume with resume=auto, with fewer of them by "
            "data.module.workers=N"
        )
    if hangs := READER_HANGS.search(str(error)):
        return (
            f"no images for {float(hangs[1]):.0f} s: a process that reads them hangs, or its disk; resume with the "
            "same command and resume=auto, or give a slow disk more time by +data.loader.timeout=SECONDS"
        )
    return None
