"""A slice of `python -m tests.data.memory_growth`."""

import pytest

from tests.data.memory_growth import weighed

RUN = ["experiment=digits", "data/loader=torch", "model=linear_infvit", "size.depth=1", "size.dim=16"]


@pytest.mark.slow
def test_neither_epochs_nor_jobs_of_a_sweep_leave_anything_in_memory():
    """A configuration that is kept would be 1,700 objects."""
    found = weighed(["-m", "~hydra.callbacks.comparison", *RUN, "seed=0,1,2", "trainer.max_epochs=3"])
    epochs = {job: found[3 * job : 3 * job + 3] for job in range(3)}
    (_, second), (_, third) = epochs[2][1:]
    assert abs(third - second) < 200
    (size, before), (size_after, after) = epochs[1][-1], epochs[2][-1]
    assert abs(after - before) < 200
    assert size_after - size < 8e6
