"""Which callbacks a run has."""

from typing import TypeVar

from lightning.pytorch import Callback, Trainer

Kind = TypeVar("Kind", bound=Callback)


def find_callbacks(trainer: Trainer, kind: type[Kind]) -> list[Kind]:
    """The run's callbacks of this kind, in their order."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, kind)]


def find_callback(trainer: Trainer, kind: type[Kind]) -> Kind | None:
    """The first of them, if there is one."""
    return next(iter(find_callbacks(trainer, kind)), None)
