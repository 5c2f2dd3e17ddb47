import itertools

import pytest

from callbacks.checkpointing import PeriodicCheckpoint


@pytest.fixture
def at_batch(monkeypatch):
    """`at_batch(5, act)`: calls `act(module, batch)` at the start of the 5th batch, or from the 5th to the `last`."""

    def act_then(first: int, act, last: float = 0) -> None:
        real, begun = PeriodicCheckpoint.on_train_batch_start, itertools.count(1)

        def then(self, trainer, module, batch, index):
            if first <= next(begun) <= max(first, last):
                act(module, batch)
            real(self, trainer, module, batch, index)

        monkeypatch.setattr(PeriodicCheckpoint, "on_train_batch_start", then)

    return act_then
